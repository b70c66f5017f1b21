#pragma once
// quantize_keys: rotated keys as int8 into a ring, with one scale for the same head of kKeyRun tokens. A warp has a
// token in its registers, a block a run of them.
#include "common/grid.cuh"
#include "common/heads.cuh"
#include "common/vec.cuh"

namespace longlive {
template <class T>
struct QuantizeKeysParams {
  const T* k;             // [frames, tokens, size]
  const float* k_offset;  // [size]
  int8_t* k_ring;         // [ring, tokens, size]
  float* k_scale;         // [heads, k_scales]
  const int64_t* slots;   // [frames]
  int runs, k_scales;     // runs = tokens / kKeyRun; k_scales >= ring * runs
  int size;
};

template <class T>
__global__ void __launch_bounds__(kRunThreads, kRunBlocks<T>) quantize_keys_kernel(const QuantizeKeysParams<T> p) {
  using R = Row<T>;
  static __shared__ LargestOfRun largest;
  const int warp = threadIdx.x / 32;
  const R k(p.k + (int64_t(blockIdx.x) * kKeyRun + warp) * p.size, p.size);
  const int64_t home = p.slots[blockIdx.x / p.runs] * p.runs + blockIdx.x % p.runs;
  KeyInt8<T> key(k, p.k_offset, largest);
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i) {
    if (!k.has(i)) break;
    key.store(i, k.offset(i), k.vector[i]);
  }
  __syncthreads();
  key.finish(p.k_ring + (home * kKeyRun + warp) * p.size, p.k_scale + home, p.k_scales);
}
}  // namespace longlive
