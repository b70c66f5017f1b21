// residual_norm: x += y * gate and LN(x) * (offset + scale) + shift, in one pass over memory. A block has a row.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "common/block_row.cuh"
#include "common/check.h"
#include "common/launch.h"

namespace longlive {
namespace {
// Blocks on a multiprocessor: as many as 64 registers a thread allow.
template <class T>
constexpr int kBlocks = 1024 / BlockRow<T>::kThreads;

template <class T>
struct Groups {
  const T* data;  // [groups, size], rows `stride` elements apart; null: none
  int64_t stride;
  int rows;  // rows of x that a group serves

  __device__ const T* of(int row) const { return data ? data + row / rows * stride : nullptr; }
};

template <class T>
struct Params {
  T* x;        // [rows, size]
  const T* y;  // [rows, size]
  T* out;      // [rows, size]
  Groups<T> gate, shift, scale;
  int size;
  float per_size, offset, eps;  // per_size = 1 / size
};

template <class T>
__global__ void __launch_bounds__(BlockRow<T>::kThreads, kBlocks<T>) residual_norm_kernel(const Params<T> p) {
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
  __shared__ typename R::Parts sums, squares;
  const float mean = x.sum([](float v) { return v; }, sums) * p.per_size;
  const float variance = x.sum([mean](float v) { return (v - mean) * (v - mean); }, squares) * p.per_size;
  const float inverse = rsqrtf(variance + p.eps), base = inverse * p.offset;
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i) {
    float out[V::kSize];
#pragma unroll
    for (int j = 0; j < V::kSize; ++j)
      out[j] = (x.vector[i][j] - mean) * fmaf(inverse, z.vector[i][j], base) + shift.vector[i][j];
    z.vector[i] = V::of(out);
  }
  z.store(p.out + start);
}

// Rows of t, [groups, size], whose groups divide x's rows evenly.
template <class T>
Groups<T> groups_of(const Tensor& t, const Tensor& x) {
  return {data<T>(t), t.stride(0), int(x.size(0) / t.size(0))};
}

Tensor residual_norm(const Tensor& x, const Tensor& y, const std::optional<Tensor>& gate, const Tensor& shift,
                     const Tensor& scale, double offset, double eps) {
  check_rows(x, "x");
  const int64_t rows = x.size(0), size = x.size(1);
  check_tensor(y, "y", {rows, size}, x.scalar_type(), x);
  if (gate) check_groups(*gate, "gate", x);
  check_groups(shift, "shift", x);
  check_groups(scale, "scale", x);
  LL_CHECK(scale.size(0) == shift.size(0), "scale must have shift's ", shift.size(0), " rows, got ", scale.size(0));
  LL_CHECK(rows <= INT32_MAX, "x must have rows for one launch, got ", rows);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  if (rows == 0) return out;
  launch_as(x, [&]<class T>(T, cudaStream_t stream) {
    const Params<T> p{data<T>(x),
                      data<T>(y),
                      data<T>(out),
                      gate ? groups_of<T>(*gate, x) : Groups<T>{},
                      groups_of<T>(shift, x),
                      groups_of<T>(scale, x),
                      int(size),
                      1.f / float(size),
                      float(offset),
                      float(eps)};
    residual_norm_kernel<T><<<unsigned(rows), BlockRow<T>::kThreads, 0, stream>>>(p);
  });
  return out;
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("residual_norm", TORCH_BOX(&longlive::residual_norm)); }
