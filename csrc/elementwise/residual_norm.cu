// residual_norm, residual_norm_int8: the kernels of residual_norm.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "common/check.h"
#include "common/launch.h"
#include "elementwise/residual_norm.cuh"

namespace longlive {
namespace {
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
    const ResidualNormParams<T, Stored> p{data<T>(x),
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
