// modulate_norm: LN(x) * (1 + scale) + shift in one pass over memory. A warp has a row, in its registers.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace longlive {
namespace {
template <class T>
struct Params {
  const T* x;                          // [rows, size]
  const T* shift;                      // [groups, size], rows shift_stride apart
  const T* scale;                      // [groups, size], rows scale_stride apart
  T* out;                              // [rows, size]
  int64_t shift_stride, scale_stride;  // in elements
  int rows, rows_per_group, size;
  float per_size, eps;  // per_size = 1 / size
};

template <class T>
__global__ void __launch_bounds__(kThreads) modulate_norm_kernel(const Params<T> p) {
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
#pragma unroll
  for (int i = 0; i < x.kVectors; ++i) {
    if (!x.has(i)) break;
    const V a = V::load(scale + x.offset(i)), b = V::load(shift + x.offset(i));
    float y[V::kSize];
#pragma unroll
    for (int j = 0; j < V::kSize; ++j) y[j] = (x.vector[i][j] - mean) * fmaf(inverse, a[j], inverse) + b[j];
    V::of(y).store(p.out + start + x.offset(i));
  }
}

Tensor modulate_norm(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps) {
  check_rows(x, "x");
  check_groups(shift, "shift", x);
  const int64_t rows = x.size(0), size = x.size(1), groups = shift.size(0);
  check_shape(scale, "scale", {groups, size});
  check_groups(scale, "scale", x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  if (rows == 0) return out;
  launch_as(x, [&]<class T>(T, cudaStream_t stream) {
    const Params<T> p{data<T>(x),      data<T>(shift),    data<T>(scale), data<T>(out),
                      shift.stride(0), scale.stride(0),   int(rows),      int(rows / groups),
                      int(size),       1.f / float(size), float(eps)};
    modulate_norm_kernel<T><<<blocks_for_rows(rows), kThreads, 0, stream>>>(p);
  });
  return out;
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("modulate_norm", TORCH_BOX(&longlive::modulate_norm)); }
