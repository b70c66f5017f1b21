// modulate_norm, modulate_norm_int8: LN(x) * (1 + scale) + shift in one pass over memory. A warp has a row, in its
// registers.
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
template <class T, class Out>
struct Params {
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
constexpr int kBlocks = std::is_same_v<T, Out> ? 0 : 16 / sizeof(T);

template <class T, class Out>
__global__ void __launch_bounds__(kThreads, kBlocks<T, Out>) modulate_norm_kernel(const Params<T, Out> p) {
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

void check(const Tensor& x, const Tensor& shift, const Tensor& scale) {
  check_rows(x, "x");
  check_groups(shift, "shift", x);
  check_shape(scale, "scale", {shift.size(0), x.size(1)});
  check_groups(scale, "scale", x);
}

// Out is void for x's own type.
template <class Out>
void launch(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps, const Tensor& out,
            float* out_scale) {
  const int64_t rows = x.size(0), size = x.size(1), groups = shift.size(0);
  if (rows == 0) return;
  launch_as(x, [&]<class T>(T, cudaStream_t stream) {
    using Stored = std::conditional_t<std::is_void_v<Out>, T, Out>;
    const Params<T, Stored> p{data<T>(x),         data<T>(shift),  data<T>(scale),    data<Stored>(out),
                              out_scale,          shift.stride(0), scale.stride(0),   int(rows),
                              int(rows / groups), int(size),       1.f / float(size), float(eps)};
    modulate_norm_kernel<T, Stored><<<blocks_for_rows(rows), kThreads, 0, stream>>>(p);
  });
}

Tensor modulate_norm(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps) {
  check(x, shift, scale);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  launch<void>(x, shift, scale, eps, out, nullptr);
  return out;
}

std::tuple<Tensor, Tensor> modulate_norm_int8(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps) {
  check(x, shift, scale);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Char);
  Tensor out_scale = torch::stable::new_empty(x, {1, x.size(0)}, ScalarType::Float);
  launch<int8_t>(x, shift, scale, eps, out, data<float>(out_scale));
  return {out, out_scale};
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("modulate_norm", TORCH_BOX(&longlive::modulate_norm));
  m.impl("modulate_norm_int8", TORCH_BOX(&longlive::modulate_norm_int8));
}
