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
constexpr int kMaxSize = 1536;

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
  const Row<T, kMaxSize> x(p.x + start, p.size);
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

void check_rows(const Tensor& t, const char* name, std::initializer_list<int64_t> shape, const Tensor& x) {
  check_shape(t, name, shape);
  check_like(t, name, x.scalar_type(), x);
  check_aligned(t, name);
  LL_CHECK(t.stride(1) == 1 && t.stride(0) % vector_size(x, "x") == 0, name,
                  " must have contiguous rows that start at multiples of ", kVectorBytes, " bytes");
}

Tensor modulate_norm(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps) {
  const int64_t vector = vector_size(x, "x");
  check_contiguous(x, "x");
  check_aligned(x, "x");
  LL_CHECK(x.dim() == 2, "x must have 2 dimensions, got ", x.dim());
  LL_CHECK(shift.dim() == 2, "shift must have 2 dimensions, got ", shift.dim());
  const int64_t rows = x.size(0), size = x.size(1), groups = shift.size(0);
  LL_CHECK(size > 0 && size <= kMaxSize && size % vector == 0, "x must have rows of at most ", kMaxSize,
                  " elements, a multiple of ", vector, "; got ", size);
  LL_CHECK(groups > 0 && rows % groups == 0, "shift must have a row count that divides x's ", rows, ", got ",
                  groups);
  check_rows(shift, "shift", {groups, size}, x);
  check_rows(scale, "scale", {groups, size}, x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  if (rows == 0) return out;
  const auto launch = [&]<class T>(T) {
    const Params<T> p{data<T>(x),      data<T>(shift),    data<T>(scale), data<T>(out),
                      shift.stride(0), scale.stride(0),   int(rows),      int(rows / groups),
                      int(size),       1.f / float(size), float(eps)};
    const cudaStream_t stream = current_stream(x.get_device_index());
    modulate_norm_kernel<T><<<blocks_for_rows(rows), kThreads, 0, stream>>>(p);
  };
  x.scalar_type() == ScalarType::Float ? launch(float{}) : launch(__nv_bfloat16{});
  LL_CUDA_CHECK(cudaGetLastError());
  return out;
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("modulate_norm", TORCH_BOX(&longlive::modulate_norm)); }
