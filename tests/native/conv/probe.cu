// The first thing to run: how wgmma reads operands that are not swizzled, and what that costs.
// 1. One product from each of several starts, pitches and group distances, against the descriptor's description: as
//    wgmma_plain.cuh reads its two offsets, and the other way round.
// 2. Cycles of a product, two warpgroups at work, by width and by the start of the first operand; beside the least.
#include <cstdio>
#include <cstring>
#include <vector>

#include "common/sm90/wgmma_plain.cuh"

using namespace longlive::sm90;

constexpr int kBytes = 160 * 1024;

template <int N>
__global__ void __launch_bounds__(128) one(const uint16_t* fill, float* out, int a_at, int a_lead, int a_stride, int b_at,
                                           int b_lead, int b_stride) {
  extern __shared__ __align__(1024) uint8_t memory[];
  for (int i = threadIdx.x; i < kBytes / 2; i += 128) reinterpret_cast<uint16_t*>(memory)[i] = fill[i];
  fence_proxy_async();
  __syncthreads();
  float d[N / 2] = {};
  pin(d);
  mma_fence();
  mma_plain<N>(d, plain_descriptor(memory + a_at, a_lead, a_stride), plain_descriptor(memory + b_at, b_lead, b_stride));
  mma_commit();
  mma_wait<0>();
  pin(d);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < N / 2; ++i)
    out[(16 * warp + lane / 4 + i / 2 % 2 * 8) * N + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
}

template <int N, int kTiles>
__global__ void __launch_bounds__(256, 1) many(const uint16_t* fill, float* out, long long* cycles, int a_at, int pitch, int loops) {
  extern __shared__ __align__(1024) uint8_t memory[];
  for (int i = threadIdx.x; i < kBytes / 2; i += 256) reinterpret_cast<uint16_t*>(memory)[i] = fill[i];
  fence_proxy_async();
  __syncthreads();
  const int group = 18 * pitch, wg = __shfl_sync(~0u, threadIdx.x / 128, 0);
  float d[kTiles][N / 2] = {};
#pragma unroll
  for (auto& x : d) pin(x);
  const uint64_t a = plain_descriptor(memory + a_at, group, pitch) + wg * 8 * pitch / 16;
  const uint64_t b = plain_descriptor(memory + 64 * 1024, N * 16, 128);
  const long long start = clock64();
#pragma unroll 1
  for (int i = 0; i < loops; ++i) {
    mma_fence();
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int t = 0; t < kTiles; ++t) mma_plain<N>(d[t], a + k * 2 * group / 16 + t % 2 * 8, b + k * 2 * N);
    mma_commit();
    mma_wait<1>();
  }
  mma_wait<0>();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
#pragma unroll
  for (auto& x : d) {
    pin(x);
    for (float v : x)
      if (v == 12345.678f) *out = v;
  }
}

static float value(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float x;
  memcpy(&x, &word, 4);
  return x;
}

template <int N>
void meaning(const std::vector<uint16_t>& fill, const uint16_t* device_fill, float* device_out) {
  struct {
    const char* name;
    int at, lead, stride;
  } starts[] = {{"dense", 0, 1024, 128},       {"rows 256 apart", 0, 18 * 256, 256},  {"rows 288 apart", 0, 18 * 288, 288},
                {"start + 16", 16, 5184, 288}, {"start + 288 + 32", 320, 5184, 288}, {"start + 112", 112, 5184, 288}};
  cudaFuncSetAttribute(one<N>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  for (const auto& s : starts) {
    const int b_at = 64 * 1024, b_lead = N * 16, b_stride = 128;
    one<N><<<1, 128, kBytes>>>(device_fill, device_out, s.at, s.lead, s.stride, b_at, b_lead, b_stride);
    std::vector<float> out(64 * N);
    const cudaError_t error = cudaMemcpy(out.data(), device_out, out.size() * 4, cudaMemcpyDeviceToHost);
    if (error != cudaSuccess) {
      printf("PROBE N=%d %s: %s\n", N, s.name, cudaGetErrorString(error));
      exit(1);
    }
    double worst[2] = {};
    for (int swapped = 0; swapped < 2; ++swapped)
      for (int m = 0; m < 64; ++m)
        for (int n = 0; n < N; ++n) {
          const auto at = [&](int start, int row, int k, int lead, int stride) {
            if (swapped) std::swap(lead, stride);
            return value(fill[(start + row % 8 * 16 + row / 8 * stride + k / 8 * lead + k % 8 * 2) / 2 % fill.size()]);
          };
          double sum = 0;
          for (int k = 0; k < 16; ++k)
            sum += double(at(s.at, m, k, s.lead, s.stride)) * at(b_at, n, k, b_lead, b_stride);
          worst[swapped] = std::max(worst[swapped], std::abs(sum - out[m * N + n]));
        }
    printf("PROBE N=%-3d %-18s error as written %.2g, offsets swapped %.2g: %s\n", N, s.name, worst[0], worst[1],
           worst[0] < 1e-3 ? "as written" : worst[1] < 1e-3 ? "SWAPPED: build with -DLL_SWAP_OFFSETS" : "NEITHER");
  }
}

template <int N, int kTiles>
void speed(const uint16_t* fill, float* out, long long* cycles) {
  cudaFuncSetAttribute(many<N, kTiles>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  const int loops = 4000;
  for (const int pitch : {256, 288})
    for (const int at : {0, 16, 64, 112}) {
      for (int i = 0; i < 2; ++i) many<N, kTiles><<<132, 256, kBytes>>>(fill, out, cycles, at, pitch, loops);
      long long host[132];
      if (cudaMemcpy(host, cycles, sizeof host, cudaMemcpyDeviceToHost) != cudaSuccess) exit(1);
      const double each = double(host[0]) / (loops * 2.0 * kTiles * 2);
      printf("SPEED N=%-3d tiles %d pitch %d start %3d: %.1f cycles a product, least %.0f (%.0f %%)\n", N, kTiles, pitch, at,
             each, N / 2.0, 100 * N / 2.0 / each);
    }
}

int main() {
  std::vector<uint16_t> fill(kBytes / 2);
  uint32_t state = 1;
  for (uint16_t& x : fill) {
    state = state * 1664525 + 1013904223;
    const float v = int(state >> 20) / 2048.f - 1;  // noise, as the network's: zeros would run faster
    uint32_t word;
    memcpy(&word, &v, 4);
    x = uint16_t(word >> 16);
  }
  uint16_t* device_fill;
  float* out;
  long long* cycles;
  cudaMalloc(&device_fill, kBytes), cudaMalloc(&out, 64 * 192 * 4), cudaMalloc(&cycles, 132 * 8);
  cudaMemcpy(device_fill, fill.data(), kBytes, cudaMemcpyHostToDevice);
  meaning<96>(fill, device_fill, out);
  meaning<192>(fill, device_fill, out);
  speed<16, 4>(device_fill, out, cycles);
  speed<96, 4>(device_fill, out, cycles);
  speed<192, 2>(device_fill, out, cycles);
}
