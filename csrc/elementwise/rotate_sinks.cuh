#pragma once
// rotate_sinks, rotate_sinks_int8: the un-rotated keys of the sink frames, of every layer, rotated into the ring, as
// they are or as int8 with their scales. A warp has a token; for int8, a block has a run of them.
#include "common/grid.cuh"
#include "common/heads.cuh"
#include "common/rope.cuh"
#include "common/vec.cuh"

namespace longlive {
template <class T>
struct PlainRing {
  T* k_ring;  // [layers, ring * tokens, size]
  __device__ Heads<T> at(int64_t layer, int64_t token, int ring_tokens, int size) const {
    return {k_ring + (layer * ring_tokens + token) * size};
  }
};
struct Int8Ring {
  int8_t* k_ring;
  float* k_scale;         // [layers, heads, k_scales]
  const float* k_offset;  // [layers, size]
  int k_scales;
};

template <class T, class Ring>
struct RotateSinksParams {
  const T* k_sink;  // [layers, sinks, tokens, size]
  Rope rope;
  Ring out;
  int rows, sinks, ring, tokens, size;  // rows = layers * sinks * tokens
};

// A key to `out`, rotated.
template <class T, class Out>
__device__ void store_rotated(const Row<T>& z, const Rotations<Vec<T>::kSize>& rope, Out& out) {
  static_assert(Row<T>::kStride % kHeadDim == 0);  // a lane's vectors lie whole heads apart, so they share rotations
#pragma unroll
  for (int i = 0; i < Row<T>::kVectors; ++i) {
    if (!z.has(i)) break;
    float key[Vec<T>::kSize];  // Precision: float32, rounded once by the store
#pragma unroll
    for (int j = 0; j < Vec<T>::kSize; ++j) key[j] = z.vector[i][j];
    rope.apply(key);
    out.store(i, z.offset(i), key);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) rotate_sinks_kernel(const RotateSinksParams<T, PlainRing<T>> p) {
  const int row = row_of_warp();
  if (row >= p.rows) return;
  const Row<T> z(p.k_sink + int64_t(row) * p.size, p.size);
  const int token = row % p.tokens, frame = row / p.tokens % p.sinks, layer = row / p.tokens / p.sinks;
  const auto out = p.out.at(layer, frame * p.tokens + token, p.ring * p.tokens, p.size);
  store_rotated(z, Rotations<Vec<T>::kSize>(p.rope, frame, token, z.first), out);
}

template <class T>
__global__ void __launch_bounds__(kRunThreads, kRunBlocks<T>)
    rotate_sinks_kernel_int8(const RotateSinksParams<T, Int8Ring> p) {
  const int row = blockIdx.x * kKeyRun + threadIdx.x / 32;
  const Row<T> z(p.k_sink + int64_t(row) * p.size, p.size);
  const int token = row % p.tokens, frame = row / p.tokens % p.sinks, layer = row / p.tokens / p.sinks;
  static __shared__ LargestOfRun largest;
  KeyInt8<T> key(z, p.out.k_offset + int64_t(layer) * p.size, largest);
  store_rotated(z, Rotations<Vec<T>::kSize>(p.rope, frame, token, z.first), key);
  __syncthreads();
  const int64_t ring_tokens = p.ring * p.tokens, ring_token = frame * p.tokens + token;
  const int64_t scale = int64_t(layer) * (p.size / kHeadDim) * p.out.k_scales + ring_token / kKeyRun;
  key.finish(p.out.k_ring + (layer * ring_tokens + ring_token) * p.size, p.out.k_scale + scale, p.out.k_scales);
}
}  // namespace longlive
