// quantize: rows as int8 with a scale for each. A warp has a row, in its registers.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/check.h"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "common/row_scale.cuh"
#include "common/vec.cuh"

namespace longlive {
namespace {
template <class T>
struct Params {
  const T* x;      // [rows, size]
  int8_t* values;  // [rows, size]
  float* scale;    // [rows]
  int rows, size;
};

template <class T>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const Params<T> p) {
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

std::tuple<Tensor, Tensor> quantize(const Tensor& x, int64_t groups) {
  check_rows(x, "x");
  LL_CHECK(groups == 1, "groups must be 1, got ", groups);
  const int64_t rows = x.size(0), size = x.size(1);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor values = torch::stable::new_empty(x, {rows, size}, ScalarType::Char);
  Tensor scale = torch::stable::new_empty(x, {1, rows}, ScalarType::Float);
  const unsigned blocks = blocks_for_rows(rows);
  if (blocks == 0) return {values, scale};
  launch_as(x, [&]<class T>(T, cudaStream_t stream) {
    const Params<T> p{data<T>(x), data<int8_t>(values), data<float>(scale), int(rows), int(size)};
    quantize_kernel<T><<<blocks, kThreads, 0, stream>>>(p);
  });
  return {values, scale};
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("quantize", TORCH_BOX(&longlive::quantize)); }
