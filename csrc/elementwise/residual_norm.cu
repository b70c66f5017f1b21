// residual_norm, residual_norm_int8: x += y * gate and LN(x) * (offset + scale) + shift, in one pass over memory. A
// block has a row.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "common/block_row.cuh"
#include "common/check.h"
#include "common/launch.h"
#include "common/row_scale.cuh"

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

template <class T, class Out>
struct Params {
  T* x;              // [rows, size]
  const T* y;        // [rows, size]
  Out* out;          // [rows, size]: T, or int8 with ...
  float* out_scale;  // ... [rows]
  Groups<T> gate, shift, scale;
  int size;
  float per_size, offset, eps;  // per_size = 1 / size
};

template <class T, class Out>
__global__ void __launch_bounds__(BlockRow<T>::kThreads, kBlocks<T>) residual_norm_kernel(const Params<T, Out> p) {
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
    __shared__ uint32_t parts[R::kWarps];
    const RowScale row_scale(R::max(largest, parts));
#pragma unroll
    for (int i = 0; i < R::kVectors; ++i)
      if (x.has(i)) store_int8(p.out + start + x.offset(i), out[i], row_scale);
    if (threadIdx.x == 0) p.out_scale[row] = row_scale.scale;
  }
}

// Rows of t, [groups, size], whose groups divide x's rows evenly.
template <class T>
Groups<T> groups_of(const Tensor& t, const Tensor& x) {
  return {data<T>(t), t.stride(0), int(x.size(0) / t.size(0))};
}

void check(const Tensor& x, const Tensor& y, const std::optional<Tensor>& gate, const Tensor& shift,
           const Tensor& scale) {
  check_rows(x, "x");
  const int64_t rows = x.size(0);
  check_tensor(y, "y", {rows, x.size(1)}, x.scalar_type(), x);
  if (gate) check_groups(*gate, "gate", x);
  check_groups(shift, "shift", x);
  check_groups(scale, "scale", x);
  LL_CHECK(scale.size(0) == shift.size(0), "scale must have shift's ", shift.size(0), " rows, got ", scale.size(0));
  LL_CHECK(rows <= INT32_MAX, "x must have rows for one launch, got ", rows);
}

// Out is void for x's own type.
template <class Out>
void launch(const Tensor& x, const Tensor& y, const std::optional<Tensor>& gate, const Tensor& shift,
            const Tensor& scale, double offset, double eps, const Tensor& out, float* out_scale) {
  const int64_t rows = x.size(0), size = x.size(1);
  if (rows == 0) return;
  launch_as(x, [&]<class T>(T, cudaStream_t stream) {
    using Stored = std::conditional_t<std::is_void_v<Out>, T, Out>;
    const Params<T, Stored> p{data<T>(x),
                              data<T>(y),
                              data<Stored>(out),
                              out_scale,
                              gate ? groups_of<T>(*gate, x) : Groups<T>{},
                              groups_of<T>(shift, x),
                              groups_of<T>(scale, x),
                              int(size),
                              1.f / float(size),
                              float(offset),
                              float(eps)};
    residual_norm_kernel<T, Stored><<<unsigned(rows), BlockRow<T>::kThreads, 0, stream>>>(p);
  });
}

Tensor residual_norm(const Tensor& x, const Tensor& y, const std::optional<Tensor>& gate, const Tensor& shift,
                     const Tensor& scale, double offset, double eps) {
  check(x, y, gate, shift, scale);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  launch<void>(x, y, gate, shift, scale, offset, eps, out, nullptr);
  return out;
}

std::tuple<Tensor, Tensor> residual_norm_int8(const Tensor& x, const Tensor& y, const std::optional<Tensor>& gate,
                                              const Tensor& shift, const Tensor& scale, double offset, double eps) {
  check(x, y, gate, shift, scale);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Char);
  Tensor out_scale = torch::stable::new_empty(x, {1, x.size(0)}, ScalarType::Float);
  launch<int8_t>(x, y, gate, shift, scale, offset, eps, out, data<float>(out_scale));
  return {out, out_scale};
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("residual_norm", TORCH_BOX(&longlive::residual_norm));
  m.impl("residual_norm_int8", TORCH_BOX(&longlive::residual_norm_int8));
}
