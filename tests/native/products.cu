// wgmma in every type of csrc/common/sm90/wgmma.cuh, on tiles that the copy engine has loaded: small integers, so that
// all sums are exact. Runs on Hopper and, by any C++ compiler, on the emulator; run by tests/build/test_toolbox.py.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "common/sm90/pipeline.cuh"
#include "common/sm90/registers.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"

namespace sm90 = longlive::sm90;

constexpr int kRows = 64, kRowBytes = 128;  // of a, and of a tile: four products deep

template <int N>
struct Shared {
  alignas(1024) uint8_t a[kRows * kRowBytes];
  alignas(1024) uint8_t b[N * kRowBytes];
  sm90::Barrier full;
};

// out [64, N] = a [64, 128 bytes] b [N, 128 bytes]^T, a from shared memory or, kFromRegisters, as a thread reads it.
template <class T, int N, bool kFromRegisters>
__global__ void product_kernel(const __grid_constant__ sm90::TensorMap a_map,
                               const __grid_constant__ sm90::TensorMap b_map, const uint8_t* a, sm90::Sum<T>* out) {
  Shared<N>& s = sm90::shared_memory<Shared<N>>();
  if (threadIdx.x == 0) {
    s.full.init(1);
    sm90::fence_barrier_init();
    s.full.arrive_and_expect(sizeof s.a + sizeof s.b);
    sm90::load_tile(s.a, a_map, s.full, 0, 0);
    sm90::load_tile(s.b, b_map, s.full, 0, 0);
  }
  __syncthreads();
  s.full.wait(0);
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
  const uint64_t from_a = sm90::swizzled_descriptor(s.a), from_b = sm90::swizzled_descriptor(s.b);
  sm90::Sum<T> d[N / 2];
  uint32_t registers[4][4];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j)
      registers[i][j] = *reinterpret_cast<const uint32_t*>(a + (row + 8 * (j % 2)) * kRowBytes + 32 * i + 16 * (j / 2) +
                                                           4 * (lane % 4));
  sm90::mma_fence();
  for (int i = 0; i < 4; ++i) {
    if constexpr (kFromRegisters) {
      i == 0 ? sm90::mma_rs<T, 128, false>(d, registers[i], from_b) : sm90::mma_rs<T>(d, registers[i], from_b + 2 * i);
    } else {
      i == 0 ? sm90::mma_ss<T, N, false>(d, from_a, from_b) : sm90::mma_ss<T, N>(d, from_a + 2 * i, from_b + 2 * i);
    }
  }
  sm90::mma_commit();
  sm90::mma_wait<0>();
  for (int e = 0; e < N / 2; ++e) out[(row + 8 * (e / 2 % 2)) * N + 8 * (e / 4) + 2 * (lane % 4) + e % 2] = d[e];
}

template <class T>
void encode(int x, uint8_t* to) {
  if constexpr (sm90::kDepth<T> == 16) {
    const float wide = x;
    std::memcpy(to, reinterpret_cast<const uint8_t*>(&wide) + 2, 2);
  } else if constexpr (std::is_same_v<T, int8_t>) {
    *to = uint8_t(x);
  } else {  // e4m3, of 0 to 7: exponent and mantissa
    constexpr uint8_t kCodes[] = {0, 0x38, 0x40, 0x44, 0x48, 0x4a, 0x4c, 0x4e};
    *to = kCodes[std::abs(x)] | (x < 0 ? 0x80 : 0);
  }
}

template <class T, int N, bool kFromRegisters = false>
bool check(const char* type) {
  constexpr int kBytes = 32 / sm90::kDepth<T>, kDepth = kRowBytes / kBytes;
  static std::mt19937 source{1};
  std::vector<int> a(kRows * kDepth), b(N * kDepth);
  for (auto* x : {&a, &b})
    for (int& value : *x) value = int(source() % 15) - 7;
  uint8_t* bytes;
  sm90::Sum<T>* out;
  if (cudaMallocManaged(&bytes, (kRows + N) * kRowBytes) != cudaSuccess) return false;
  if (cudaMallocManaged(&out, kRows * N * sizeof *out) != cudaSuccess) return false;
  for (size_t i = 0; i < a.size(); ++i) encode<T>(a[i], bytes + i * kBytes);
  for (size_t i = 0; i < b.size(); ++i) encode<T>(b[i], bytes + kRows * kRowBytes + i * kBytes);
  const auto kernel = product_kernel<T, N, kFromRegisters>;
  cudaLaunchConfig_t config{};
  config.gridDim = 1, config.blockDim = sm90::kWarpgroup, config.dynamicSmemBytes = sizeof(Shared<N>);
  const auto map = [&](int start, int rows) {
    return sm90::matrix_map(bytes + start * kRowBytes, rows, kRowBytes, kRowBytes, rows);
  };
  bool good =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<N>)) == cudaSuccess &&
      cudaLaunchKernelEx(&config, kernel, map(0, kRows), map(kRows, N), static_cast<const uint8_t*>(bytes), out) ==
          cudaSuccess &&
      cudaDeviceSynchronize() == cudaSuccess;
  for (int m = 0; good && m < kRows; ++m)
    for (int n = 0; good && n < N; ++n) {
      int want = 0;
      for (int k = 0; k < kDepth; ++k) want += a[m * kDepth + k] * b[n * kDepth + k];
      good = out[m * N + n] == want;
    }
  cudaFree(bytes), cudaFree(out);
  if (!good) std::printf("wrong: %s, %d columns, a from %s\n", type, N, kFromRegisters ? "registers" : "shared memory");
  return good;
}

template <class T>
bool check_all(const char* type) {
  return check<T, 128>(type) & check<T, 192>(type) & check<T, 256>(type);
}

int main() {
  bool good = check_all<__nv_bfloat16>("bfloat16") & check_all<int8_t>("int8") & check_all<__nv_fp8_e4m3>("e4m3");
  good &= check<int8_t, 128, true>("int8") & check<__nv_fp8_e4m3, 128, true>("e4m3");
  return good ? 0 : 1;
}
