// csrc/common/heads.cuh itself, on the emulator, against float64: offset, Hadamard matrix, scales, rounding. Run by
// tests/kernels/test_qk_norm_rope_store_int8.py.
#include "common/heads.cuh"

#include <cmath>
#include <vector>

using namespace longlive;

std::mt19937 source{5};

// A warp stores a token of `heads` heads, kSize elements of a lane at a time.
template <int kSize>
void store(const float* x, HeadsInt8 out, int heads) {
  for (int at = int(threadIdx.x) * kSize; at < heads * kHeadDim; at += 32 * kSize) {
    float part[kSize];
    std::copy(x + at, x + at + kSize, part);
    out.store(at, part);
  }
}

template <int kSize>
bool check(int heads, float size, bool has_offset) {
  const int channels = heads * kHeadDim, stride = 7;
  std::normal_distribution<float> normal;
  std::vector<float4> memory(2 * channels / 4);  // aligned
  float *x = &memory[0].x, *offset = x + channels;
  for (int i = 0; i < 2 * channels; ++i) x[i] = size * normal(source) * (i % 37 == 0 ? 20 : 1);
  std::vector<uint4> bytes(channels / 16);
  auto* values = reinterpret_cast<int8_t*>(bytes.data());
  std::vector<float> scale(heads * stride, -1);
  const HeadsInt8 out{values, scale.data(), stride, has_offset ? offset : nullptr};
  const cudaLaunchConfig_t launch{.gridDim = 1, .blockDim = 32, .dynamicSmemBytes = 1024};
  cudaLaunchKernelEx(&launch, store<kSize>, static_cast<const float*>(x), out, heads);

  for (int head = 0; head < heads; ++head) {
    double want[kHeadDim], largest = 0;
    for (int i = 0; i < kHeadDim; ++i) {
      want[i] = 0;
      for (int j = 0; j < kHeadDim; ++j) {
        const int at = head * kHeadDim + j;
        const double element = double(x[at]) - (has_offset ? offset[at] : 0);
        want[i] += __builtin_popcount(i & j) % 2 ? -element : element;
      }
      want[i] /= std::sqrt(double(kHeadDim)), largest = std::max(largest, std::fabs(want[i]));
    }
    const double unit = largest < std::ldexp(1., -100) ? 0 : largest / 127;
    if (std::fabs(scale[head * stride] - unit) > 1e-5 * unit) return false;
    for (int i = 0; i < kHeadDim; ++i) {
      const int got = values[head * kHeadDim + i];
      if (got == -128 || std::fabs(got * unit - want[i]) > 0.501 * unit + (unit == 0 ? largest : 0)) return false;
    }
  }
  for (size_t i = 0; i < scale.size(); ++i)
    if (i % stride && scale[i] != -1) return false;
  return true;
}

int main() {
  for (const float size : {1.f, 1e-20f, 1e20f, 1e-38f, 0.f})
    for (const bool has_offset : {false, true})
      for (int heads = 2; heads <= 12; heads += 2)
        if (!check<8>(heads, size, has_offset) || !check<4>(heads - 1, size, has_offset)) {
          std::printf("wrong: %d heads of size %g, offset %d\n", heads, size, has_offset);
          return 1;
        }
  return 0;
}
