#pragma once
// What every launcher needs from the host: the current stream, a grid, and a check after the launch.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>

#include "common/error.h"

// This one symbol lives in libtorch_cuda. Weak, it lets the library load where torch has no CUDA; there no
// CUDA tensor exists to reach the call.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));

namespace longlive {
inline cudaStream_t current_stream(int32_t device) {
  LL_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// One warp per row. Four to a block: small enough that the blocks of a few thousand rows spread evenly over the chip.
constexpr int kWarpsPerBlock = 4;
constexpr int kThreads = 32 * kWarpsPerBlock;

inline unsigned blocks_for_rows(int64_t rows) {
  LL_CHECK(rows <= INT32_MAX - kWarpsPerBlock, "too many rows for one launch: ", rows);
  return static_cast<unsigned>((rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
}

__device__ inline int row_of_warp() { return blockIdx.x * kWarpsPerBlock + threadIdx.x / 32; }
}  // namespace longlive

#define LL_CUDA_CHECK(expr)                                                            \
  do {                                                                                 \
    const cudaError_t err_ = (expr);                                                   \
    if (err_ != cudaSuccess) cudaGetLastError(); /* or the next launch would raise it again */ \
    LL_CHECK(err_ == cudaSuccess, #expr " failed: ", cudaGetErrorString(err_));              \
  } while (0)
