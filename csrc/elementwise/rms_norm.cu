// rms_norm: x / sqrt(mean(x^2) + eps) * gain in one pass over memory. A block has a row.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/block_row.cuh"
#include "common/check.h"
#include "common/launch.h"

namespace longlive {
namespace {
template <class T>
struct Params {
  const T* x;     // [rows, size]
  const T* gain;  // [size]
  T* out;         // [rows, size]
  int size;
  float per_size, eps;  // per_size = 1 / size
};

template <class T>
__global__ void __launch_bounds__(BlockRow<T>::kThreads) rms_norm_kernel(const Params<T> p) {
  using V = Vec<T>;
  using R = BlockRow<T>;
  const int64_t start = int64_t(blockIdx.x) * p.size;
  const R x(p.x + start, p.size);
  R z(p.gain, p.size);  // the gain at first
  // Precision: float32 throughout, one rounding at the store.
  __shared__ typename R::Parts squares;
  const float inverse = rsqrtf(x.sum([](float v) { return v * v; }, squares) * p.per_size + p.eps);
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i) {
    float out[V::kSize];
#pragma unroll
    for (int j = 0; j < V::kSize; ++j) out[j] = x.vector[i][j] * inverse * z.vector[i][j];
    z.vector[i] = V::of(out);
  }
  z.store(p.out + start);
}

Tensor rms_norm(const Tensor& x, const Tensor& gain, double eps) {
  check_rows(x, "x");
  const int64_t rows = x.size(0), size = x.size(1);
  check_tensor(gain, "gain", {size}, x.scalar_type(), x);
  LL_CHECK(rows <= INT32_MAX, "x must have rows for one launch, got ", rows);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  if (rows == 0) return out;
  launch_as(x, [&]<class T>(T, cudaStream_t stream) {
    const Params<T> p{data<T>(x), data<T>(gain), data<T>(out), int(size), 1.f / float(size), float(eps)};
    rms_norm_kernel<T><<<unsigned(rows), BlockRow<T>::kThreads, 0, stream>>>(p);
  });
  return out;
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("rms_norm", TORCH_BOX(&longlive::rms_norm)); }
