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
  const T* x;           // [rows, size]
  const T* gain;        // [size]
  T* out;               // [rows, size]
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
  const int64_t vector = vector_size(x, "x");
  check_contiguous(x, "x");
  check_aligned(x, "x");
  LL_CHECK(x.dim() == 2, "x must have 2 dimensions, got ", x.dim());
  constexpr int kMaxSize = BlockRow<float>::kMaxSize;
  const int64_t rows = x.size(0), size = x.size(1);
  LL_CHECK(size > 0 && size <= kMaxSize && size % vector == 0, "x must have rows of at most ", kMaxSize,
           " elements, a multiple of ", vector, "; got ", size);
  check_shape(gain, "gain", {size});
  check_like(gain, "gain", x.scalar_type(), x);
  check_contiguous(gain, "gain");
  check_aligned(gain, "gain");
  LL_CHECK(rows <= INT32_MAX, "x must have rows for one launch, got ", rows);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  if (rows == 0) return out;
  const auto launch = [&]<class T>(T) {
    const Params<T> p{data<T>(x), data<T>(gain), data<T>(out), int(size), 1.f / float(size), float(eps)};
    const cudaStream_t stream = current_stream(x.get_device_index());
    rms_norm_kernel<T><<<unsigned(rows), BlockRow<T>::kThreads, 0, stream>>>(p);
  };
  x.scalar_type() == ScalarType::Float ? launch(float{}) : launch(__nv_bfloat16{});
  LL_CUDA_CHECK(cudaGetLastError());
  return out;
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("rms_norm", TORCH_BOX(&longlive::rms_norm)); }
