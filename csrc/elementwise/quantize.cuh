#pragma once
// quantize: rows as int8 with a scale for each. A warp has a row, in its registers.
#include "common/grid.cuh"
#include "common/reduce.cuh"
#include "common/row_scale.cuh"
#include "common/vec.cuh"

namespace longlive {
template <class T>
struct QuantizeParams {
  const T* x;      // [rows, size]
  int8_t* values;  // [rows, size]
  float* scale;    // [rows]
  int rows, size;
};

template <class T>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const QuantizeParams<T> p) {
  const int row = row_of_warp();
  if (row >= p.rows) return;
  const int64_t start = int64_t(row) * p.size;
  const Row<T> x(p.x + start, p.size);
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < x.kVectors; ++i)
    if (x.has(i)) largest = max(largest, largest_magnitude(x.vector[i]));
  const RowScale scale(warp_max(largest));
#pragma unroll
  for (int i = 0; i < x.kVectors; ++i)
    if (x.has(i)) store_int8(p.values + start + x.offset(i), x.vector[i], scale);
  if (threadIdx.x % 32 == 0) p.scale[row] = scale.scale;
}
}  // namespace longlive
