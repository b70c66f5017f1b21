#pragma once
// As much of CUDA as the kernels of csrc/attention need to run on a CPU: see emulator.h.
#include <cstddef>
#include <cstdint>

#define __device__
#define __global__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

#include "emulator.h"

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int bytes) {
  emulator::require(bytes <= emulator::kSharedBytes, "more shared memory than there is");
  return cudaSuccess;
}
template <class Kernel, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, Kernel kernel, const Args&... args) {
  std::vector<unsigned> blocks(config->gridDim.x);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), emulator::random_source);
  for (const unsigned block : blocks) emulator::run_block(block, config->blockDim.x, [&] { kernel(args...); });
  return cudaSuccess;
}
