#pragma once
// residual_norm, residual_norm_int8: x += y * gate and LN(x) * (offset + scale) + shift, in one pass over memory. A
// block has a row.
#include <type_traits>

#include "common/block_row.cuh"
#include "common/row_scale.cuh"

namespace longlive {
// Blocks on a multiprocessor: as many as 64 registers a thread allow.
template <class T>
constexpr int kResidualNormBlocks = 1024 / BlockRow<T>::kThreads;

template <class T>
struct Groups {
  const T* data;  // [groups, size], rows `stride` elements apart; null: none
  int64_t stride;
  int rows;  // rows of x that a group serves

  __device__ const T* of(int row) const { return data ? data + row / rows * stride : nullptr; }
};

template <class T, class Out>
struct ResidualNormParams {
  T* x;              // [rows, size]
  const T* y;        // [rows, size]
  Out* out;          // [rows, size]: T, or int8 with ...
  float* out_scale;  // ... [rows]
  Groups<T> gate, shift, scale;
  int size;
  float per_size, offset, eps;  // per_size = 1 / size
};

template <class T, class Out>
__global__ void __launch_bounds__(BlockRow<T>::kThreads, kResidualNormBlocks<T>)
    residual_norm_kernel(const ResidualNormParams<T, Out> p) {
  using V = Vec<T>;
  using R = BlockRow<T>;
  const int row = blockIdx.x;
  const int64_t start = int64_t(row) * p.size;
  R x(p.x + start, p.size);
  const R y(p.y + start, p.size), gate(p.gate.of(row), p.size);
  // Precision: the sum is float32 and rounded here, once; what follows reads it rounded, as the published order does.
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i) {
    float sum[V::kSize];
#pragma unroll
    for (int j = 0; j < V::kSize; ++j)
      sum[j] = fmaf(y.vector[i][j], p.gate.data ? gate.vector[i][j] : 1.f, x.vector[i][j]);
    x.vector[i] = V::of(sum);
  }
  R z(p.scale.of(row), p.size);  // the scale at first
  const R shift(p.shift.of(row), p.size);
  x.store(p.x + start);

  // Precision: float32 throughout, one rounding at the store. The variance is summed about the mean: the difference of
  // sum(x^2) and mean^2 would cancel where the residual stream has a large mean.
  static __shared__ typename R::Parts sums, squares;
  const float mean = x.sum([](float v) { return v; }, sums) * p.per_size;
  const float variance = x.sum([mean](float v) { return (v - mean) * (v - mean); }, squares) * p.per_size;
  const float inverse = rsqrtf(variance + p.eps), base = inverse * p.offset;
  float out[R::kVectors][V::kSize];
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i)
#pragma unroll
    for (int j = 0; j < V::kSize; ++j)
      out[i][j] = (x.vector[i][j] - mean) * fmaf(inverse, z.vector[i][j], base) + shift.vector[i][j];
  if constexpr (std::is_same_v<Out, T>) {
#pragma unroll
    for (int i = 0; i < R::kVectors; ++i) z.vector[i] = V::of(out[i]);
    z.store(p.out + start);
  } else {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < R::kVectors; ++i)
      if (x.has(i)) largest = max(largest, largest_magnitude(out[i]));
    static __shared__ uint32_t parts[R::kWarps];
    const RowScale row_scale(R::max(largest, parts));
#pragma unroll
    for (int i = 0; i < R::kVectors; ++i)
      if (x.has(i)) store_int8(p.out + start + x.offset(i), out[i], row_scale);
    if (threadIdx.x == 0) p.out_scale[row] = row_scale.scale;
  }
}
}  // namespace longlive
