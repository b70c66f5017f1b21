#pragma once
// What every launcher needs from the host: the current stream, a grid, the element type, and a check after the launch.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>

#include "common/check.h"
#include "common/error.h"
#include "common/grid.cuh"

// This one symbol lives in libtorch_cuda. Weak, it lets the library load where torch has no CUDA; there no
// CUDA tensor exists to reach the call.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));

#define LL_CUDA_CHECK(expr)                                                                    \
  do {                                                                                         \
    const cudaError_t err_ = (expr);                                                           \
    if (err_ != cudaSuccess) cudaGetLastError(); /* or the next launch would raise it again */ \
    LL_CHECK(err_ == cudaSuccess, #expr " failed: ", cudaGetErrorString(err_));                \
  } while (0)

namespace longlive {
inline cudaStream_t current_stream(int32_t device) {
  LL_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int processors(int device) {
  int count = 0;
  LL_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Launches with f(T{}, stream), where T is the element type of x, one that vector_size() takes.
template <class F>
void launch_as(const Tensor& x, F f) {
  vector_size(x, "x");
  const cudaStream_t stream = current_stream(x.get_device_index());
  x.scalar_type() == ScalarType::Float ? f(float{}, stream) : f(__nv_bfloat16{}, stream);
  LL_CUDA_CHECK(cudaGetLastError());
}
}  // namespace longlive
