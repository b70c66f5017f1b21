// modulate_norm, modulate_norm_int8: the kernels of modulate_norm.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/check.h"
#include "common/launch.h"
#include "elementwise/modulate_norm.cuh"

namespace longlive {
namespace {
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
    const ModulateNormParams<T, Stored> p{data<T>(x),         data<T>(shift),  data<T>(scale),    data<Stored>(out),
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
