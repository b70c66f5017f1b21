// csrc/common/heads.cuh itself, on the emulator, against float64: offset, Hadamard matrix, scales, rounding. Run by
// tests/kernels/test_qk_norm_rope_store_int8.py.
#include "common/heads.cuh"

#include <cmath>
#include <vector>

using namespace longlive;

std::mt19937 source{5};
constexpr int kStride = 7;  // of scales

void set(float& x, float to) { x = to; }
void set(bf16& x, float to) { x = __float2bfloat16_rn(to); }
double wide(float x) { return x; }
double wide(bf16 x) { return widen(x.bits); }

// A warp stores a token.
template <class T>
void store_query(const T* x, QueryInt8 out, int heads) {
  const Row<T> row(x, heads * kHeadDim);
  for (int i = 0; i < row.kVectors && row.has(i); ++i) {
    float part[Vec<T>::kSize];
    for (int j = 0; j < Vec<T>::kSize; ++j) part[j] = row.vector[i][j];
    out.store(i, row.offset(i), part);
  }
}

// A block stores a run of them.
template <class T>
void store_keys(const T* x, const float* offset, LargestOfRun* largest, int8_t* values, float* scale, int heads) {
  const int warp = threadIdx.x / 32, size = heads * kHeadDim;
  const Row<T> row(x + warp * size, size);
  KeyInt8<T> key(row, offset, *largest);
  for (int i = 0; i < row.kVectors && row.has(i); ++i) key.store(i, row.offset(i), row.vector[i]);
  __syncthreads();
  key.finish(values + warp * size, scale, kStride);
}

// Aligned memory.
template <class T>
struct Array {
  std::vector<uint4> memory;
  explicit Array(int size) : memory((size * sizeof(T) + 15) / 16) {}
  T* data() { return reinterpret_cast<T*>(memory.data()); }
  T& operator[](int i) { return data()[i]; }
};

// One head of `tokens` tokens, which share a scale: half a unit at most, but for float32's own error.
bool head_is_right(const std::vector<double>& x, const int8_t* values, int channels, float scale) {
  std::vector<double> want(x.size());
  double largest = 0;
  for (size_t at = 0; at < x.size(); ++at) {
    const size_t first = at / kHeadDim * kHeadDim;
    for (size_t j = 0; j < kHeadDim; ++j)
      want[at] += __builtin_popcountll(at % kHeadDim & j) % 2 ? -x[first + j] : x[first + j];
    want[at] /= std::sqrt(double(kHeadDim)), largest = std::max(largest, std::fabs(want[at]));
  }
  const double unit = largest < std::ldexp(1., -100) ? 0 : largest / 127;
  if (std::fabs(scale - unit) > 1e-5 * unit) return false;
  for (size_t at = 0; at < x.size(); ++at) {
    const int got = values[at / kHeadDim * channels + at % kHeadDim];
    if (got == -128 || std::fabs(got * unit - want[at]) > 0.501 * unit + (unit == 0 ? largest : 0)) return false;
  }
  return true;
}

// Keys, or the first of these tokens as a query.
template <class T>
bool check(int heads, float size, bool keys) {
  const int channels = heads * kHeadDim, tokens = keys ? kKeyRun : 1;
  std::normal_distribution<float> normal;
  Array<T> x(tokens * channels);
  Array<float> offset(channels);
  for (int i = 0; i < tokens * channels; ++i) {
    const float of_token = std::ldexp(size, -3 * (i / channels * 5 % kKeyRun));
    set(x[i], of_token * normal(source) * (i % 37 == 0 ? 20 : 1));
  }
  for (int i = 0; i < channels; ++i) offset[i] = size * normal(source);
  Array<int8_t> values(tokens * channels);
  std::vector<float> scale(heads * kStride, -1);
  Array<LargestOfRun> largest(1);
  const cudaLaunchConfig_t launch{.gridDim = 1, .blockDim = 32u * tokens, .dynamicSmemBytes = 1024};
  if (keys) {
    cudaLaunchKernelEx(&launch, store_keys<T>, static_cast<const T*>(x.data()),
                       static_cast<const float*>(offset.data()), largest.data(), values.data(), scale.data(), heads);
  } else {
    cudaLaunchKernelEx(&launch, store_query<T>, static_cast<const T*>(x.data()),
                       QueryInt8{values.data(), scale.data(), kStride}, heads);
  }

  for (int head = 0; head < heads; ++head) {
    std::vector<double> run;
    for (int i = 0; i < tokens * kHeadDim; ++i) {
      const int at = head * kHeadDim + i % kHeadDim;
      run.push_back(wide(x[i / kHeadDim * channels + at]) - (keys ? offset[at] : 0));
    }
    if (!head_is_right(run, values.data() + head * kHeadDim, channels, scale[head * kStride])) return false;
  }
  for (size_t i = 0; i < scale.size(); ++i)
    if (i % kStride && scale[i] != -1) return false;
  return true;
}

int main() {
  for (const float size : {1.f, 1e-20f, 1e20f, 1e-38f, 0.f})
    for (const bool keys : {false, true})
      for (int heads = 2; heads <= kMaxHeads; heads += 2)
        if (!check<bf16>(heads, size, keys) || !check<float>(heads - 1, size, keys)) {
          std::printf("wrong: %d heads of size %g, %s\n", heads, size, keys ? "keys" : "a query");
          return 1;
        }
  return 0;
}
