// x0_renoise: x0 = x - sigma flow, then (1 - sigma') x0 + sigma' noise, with the sampler's roundings. A thread has one
// vector.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "common/check.h"
#include "common/launch.h"
#include "common/vec.cuh"

namespace longlive {
namespace {
template <class T>
struct Params {
  const T *x, *flow, *noise;  // [vectors * Vec<T>::kSize]; noise null: stop at x0
  const double* sigmas;       // this step's, and the next one's where there is noise
  T* out;
  int64_t vectors;
};

template <class T>
__global__ void __launch_bounds__(kThreads) x0_renoise_kernel(const Params<T> p) {
  using V = Vec<T>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.vectors) return;
  const int64_t start = i * V::kSize;
  const V x = V::load(p.x + start), flow = V::load(p.flow + start);
  const double sigma = p.sigmas[0];
  float r[V::kSize];
  // Precision: the intrinsics keep each product and each sum a rounding of its own, as the definition has them. float64
  // becomes bfloat16 by way of float32, as in torch.
#pragma unroll
  for (int j = 0; j < V::kSize; ++j) r[j] = __double2float_rn(__dsub_rn(x[j], __dmul_rn(sigma, flow[j])));
  V result = V::of(r);
  if (p.noise) {
    const V noise = V::load(p.noise + start);
    const float next = __double2float_rn(p.sigmas[1]), keep = __fsub_rn(1.f, next);
#pragma unroll
    for (int j = 0; j < V::kSize; ++j) r[j] = __fadd_rn(__fmul_rn(keep, result[j]), __fmul_rn(next, noise[j]));
    result = V::of(r);
  }
  result.store(p.out + start);
}

Tensor x0_renoise(const Tensor& x, const Tensor& flow, const std::optional<Tensor>& noise, const Tensor& sigmas,
                  int64_t index) {
  const int64_t vector = vector_size(x, "x");
  const ScalarType dtype = x.scalar_type();
  check_tensor(x, "x", x.sizes(), dtype, x);
  LL_CHECK(x.numel() % vector == 0, "x must have a multiple of ", vector, " elements, got ", x.numel());
  check_tensor(flow, "flow", x.sizes(), dtype, x);
  if (noise) check_tensor(*noise, "noise", x.sizes(), dtype, x);
  LL_CHECK(sigmas.dim() == 1, "sigmas must have 1 dimension, got ", sigmas.dim());
  check_tensor(sigmas, "sigmas", {sigmas.size(0)}, ScalarType::Double, x, sizeof(double));
  const int64_t last = sigmas.size(0) - (noise ? 2 : 1);
  LL_CHECK(index >= 0 && index <= last, "index must lie in 0..", last, ", got ", index);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  const int64_t vectors = x.numel() / vector, blocks = ceil_div(vectors, kThreads);
  if (vectors == 0) return out;
  LL_CHECK(blocks <= INT32_MAX, "x must fit one launch, got ", x.numel(), " elements");
  launch_as(x, [&]<class T>(T, cudaStream_t stream) {
    const Params<T> p{data<T>(x),   data<T>(flow), noise ? data<T>(*noise) : nullptr, data<double>(sigmas) + index,
                      data<T>(out), vectors};
    x0_renoise_kernel<T><<<unsigned(blocks), kThreads, 0, stream>>>(p);
  });
  return out;
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("x0_renoise", TORCH_BOX(&longlive::x0_renoise)); }
