#pragma once
// modulate_norm, modulate_norm_int8: LN(x) * (1 + scale) + shift in one pass over memory. A warp has a row, in its
// registers.
#include <type_traits>

#include "common/grid.cuh"
#include "common/reduce.cuh"
#include "common/row_scale.cuh"
#include "common/vec.cuh"

namespace longlive {
template <class T, class Out>
struct ModulateNormParams {
  const T* x;                          // [rows, size]
  const T* shift;                      // [groups, size], rows shift_stride apart
  const T* scale;                      // [groups, size], rows scale_stride apart
  Out* out;                            // [rows, size]: T, or int8 with ...
  float* out_scale;                    // ... [rows]
  int64_t shift_stride, scale_stride;  // in elements
  int rows, rows_per_group, size;
  float per_size, eps;  // per_size = 1 / size
};

// Blocks on a multiprocessor. With int8 results a lane holds its part of the row as float32: 64 registers must do.
template <class T, class Out>
constexpr int kModulateNormBlocks = std::is_same_v<T, Out> ? 0 : 16 / sizeof(T);

template <class T, class Out>
__global__ void __launch_bounds__(kThreads, kModulateNormBlocks<T, Out>)
    modulate_norm_kernel(const ModulateNormParams<T, Out> p) {
  using V = Vec<T>;
  const int row = row_of_warp();
  if (row >= p.rows) return;
  const int64_t start = int64_t(row) * p.size;
  const Row<T> x(p.x + start, p.size);
  const int group = row / p.rows_per_group;
  const T* shift = p.shift + group * p.shift_stride;
  const T* scale = p.scale + group * p.scale_stride;

  // Precision: float32 throughout, one rounding at the store. The variance is summed about the mean: the difference of
  // sum(x^2) and mean^2 would cancel where the residual stream has a large mean.
  const float mean = warp_sum(x.sum([](float v) { return v; })) * p.per_size;
  const float variance = warp_sum(x.sum([mean](float v) { return (v - mean) * (v - mean); })) * p.per_size;
  const float inverse = rsqrtf(variance + p.eps);
  // f(i, y) of each vector i of the row's results.
  const auto for_each = [&](auto f) {
#pragma unroll
    for (int i = 0; i < x.kVectors; ++i) {
      if (!x.has(i)) break;
      const V a = V::load(scale + x.offset(i)), b = V::load(shift + x.offset(i));
      float y[V::kSize];
#pragma unroll
      for (int j = 0; j < V::kSize; ++j) y[j] = (x.vector[i][j] - mean) * fmaf(inverse, a[j], inverse) + b[j];
      f(i, y);
    }
  };
  if constexpr (std::is_same_v<Out, T>) {
    for_each([&](int i, const auto& y) { V::of(y).store(p.out + start + x.offset(i)); });
  } else {
    float result[x.kVectors][V::kSize];
    uint32_t largest = 0;
    for_each([&](int i, const auto& y) {
      largest = max(largest, largest_magnitude(y));
#pragma unroll
      for (int j = 0; j < V::kSize; ++j) result[i][j] = y[j];
    });
    const RowScale row_scale(warp_max(largest));
#pragma unroll
    for (int i = 0; i < x.kVectors; ++i) {
      if (!x.has(i)) break;
      store_int8(p.out + start + x.offset(i), result[i], row_scale);
    }
    if (threadIdx.x % 32 == 0) p.out_scale[row] = row_scale.scale;
  }
}
}  // namespace longlive
