#pragma once
// As much of CUDA as the kernels of csrc need to run on a CPU: see emulator.h.
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cuda.h"
#include "emulator.h"

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

using std::max;
using std::min;
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float x, float y) { return x / y; }
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t both = uint64_t(y) << 32 | x;
  uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i) bytes |= uint32_t(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return bytes;
}
inline float __saturatef(float x) { return x > 0 ? std::fmin(x, 1.f) : 0; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
template <class T>
T __ldg(const T* p) {
  return *p;
}

template <class T>
T __shfl_sync(unsigned, T x, int from) {
  return std::bit_cast<T>(emulator::exchange(std::bit_cast<uint32_t>(x))[from]);
}
template <class T>
T __shfl_xor_sync(unsigned all, T x, int mask) {
  return __shfl_sync(all, x, int(threadIdx.x % 32) ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned all, T x, int by) {
  const int from = threadIdx.x % 32 + by;
  return __shfl_sync(all, x, from < 32 ? from : from - by);
}
inline uint32_t __reduce_max_sync(unsigned, uint32_t x) {
  const uint32_t* lanes = emulator::exchange(x);
  return *std::max_element(lanes, lanes + 32);
}
inline uint32_t __reduce_add_sync(unsigned, uint32_t x) {
  const uint32_t* lanes = emulator::exchange(x);
  uint32_t sum = 0;
  for (int lane = 0; lane < 32; ++lane) sum += lanes[lane];
  return sum;
}
inline bool __any_sync(unsigned, bool x) {
  const uint32_t* lanes = emulator::exchange(x);
  return std::any_of(lanes, lanes + 32, [](uint32_t lane) { return lane != 0; });
}
// Threads of the emulator change places at calls of it alone.
inline uint32_t atomicOr(uint32_t* at, uint32_t bits) { return std::exchange(*at, *at | bits); }
inline void __syncwarp() { emulator::exchange(0); }
inline void __syncthreads() {
  emulator::meet(emulator::self->cta->all, emulator::machine->threads_per_cta, "__syncthreads");
}
template <class T>
T atomicAdd(T* to, T x) {
  const T before = *to;
  *to += x;
  return before;
}
[[noreturn]] inline void __trap() { emulator::fail("trap"); }

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
using cudaStream_t = void*;

enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
enum { cudaEnableDefault };
inline cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** entry, unsigned, int,
                                                    cudaDriverEntryPointQueryResult*) {
  *entry = reinterpret_cast<void*>(&cuTensorMapEncodeTiled);
  return cudaSuccess;
}

template <class T>
cudaError_t cudaMallocManaged(T** p, size_t bytes) {
  *p = static_cast<T*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
  return cudaMallocManaged(p, bytes);
}
enum { cudaMemcpyDefault };
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, int) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline void cudaFree(void* p) { std::free(p); }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int bytes) {
  return bytes <= emulator::kSharedBytes ? cudaSuccess : cudaErrorInvalidValue;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
// Clusters run one after the other, in random order.
template <class Kernel, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, Kernel kernel, const Args&... args) {
  const unsigned grid = config->gridDim.x, cluster = config->numAttrs ? config->attrs[0].val.clusterDim.x : 1;
  if (cluster == 0 || grid % cluster) return cudaErrorInvalidValue;
  std::vector<unsigned> firsts;
  for (unsigned block = 0; block < grid; block += cluster) firsts.push_back(block);
  std::shuffle(firsts.begin(), firsts.end(), emulator::random_source);
  for (const unsigned first : firsts)
    emulator::run_cluster(cluster, first, grid, config->blockDim.x, config->dynamicSmemBytes, [&] { kernel(args...); });
  return cudaSuccess;
}
