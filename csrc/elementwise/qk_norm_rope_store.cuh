#pragma once
// qk_norm_rope_store, qk_norm_rope_store_int8: from the QKV product to rotated queries and the ring's keys and values,
// in one pass over memory. A warp has a row in its registers: a token has three, its q, k and v. Queries and keys leave
// as they are, or as int8 with their scales; then a block has a run of tokens, the q, k or v of each.
#include "common/grid.cuh"
#include "common/heads.cuh"
#include "common/reduce.cuh"
#include "common/rope.cuh"
#include "common/vec.cuh"

namespace longlive {
// Where queries and keys go: `at`, the first element of a token.
template <class T>
struct PlainOut {
  T* q;       // [frames * tokens, size]
  T* k_ring;  // [ring * tokens, size]
  __device__ Heads<T> query(int64_t at) const { return {q + at}; }
  __device__ Heads<T> key(int64_t at) const { return {k_ring + at}; }
};
struct Int8Out {
  int8_t *q, *k_ring;
  float* q_scale;         // [heads, queries]
  float* k_scale;         // [heads, k_scales]
  const float* k_offset;  // [size]
  int queries, k_scales;  // queries = frames * tokens; k_scales >= ring * tokens / kKeyRun
};

template <class T, class Out>
struct StoreParams {
  const T* qkv;              // [frames * tokens, 3, size]
  const T *q_gain, *k_gain;  // [size]
  Rope rope;
  Out out;
  T* v_ring;                      // [ring, tokens, size]
  T* k_sink;                      // [sinks, tokens, size]
  const int64_t* slots;           // [frames]
  int rows, tokens, size, sinks;  // rows = 3 * frames * tokens
  float per_size, eps;            // per_size = 1 / size
};

// Consecutive elements, normed and with their gain, in float32; rounded once, where they are stored.
template <class T>
struct Normed {
  static constexpr int kSize = Vec<T>::kSize;
  float at[kSize];

  __device__ Normed(const Vec<T>& z, float inverse, const Vec<T>& gain) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) at[i] = z[i] * inverse * gain[i];
  }
  __device__ void store(T* p) const { Vec<T>::of(at).store(p); }
};

enum { kQuery, kKey, kValue };  // the rows of a token

// A token's frame, its place in the frame, and in the ring.
struct Place {
  int frame, in_frame;
  int64_t slot, ring_token, in_ring;  // in_ring: of its first element
  template <class P>
  __device__ Place(const P& p, int token)
      : frame(token / p.tokens),
        in_frame(token % p.tokens),
        slot(p.slots[frame]),
        ring_token(slot * p.tokens + in_frame),
        in_ring(ring_token * p.size) {}
};

template <class T>
__device__ void store_value(const Row<T>& z, T* v_ring) {
#pragma unroll
  for (int i = 0; i < z.kVectors; ++i)
    if (z.has(i)) z.vector[i].store(v_ring + z.offset(i));
}

// A query or key to `out`, normed, with its gain, and rotated; to `sink`, if it is not null, before its rotation.
template <class P, class T, class Out>
__device__ void store_rotated(const P& p, const Row<T>& z, const Rotations<Vec<T>::kSize>& rope, const T* gain, T* sink,
                              Out& out) {
  static_assert(Row<T>::kStride % kHeadDim == 0);  // a lane's vectors lie whole heads apart, so they share rotations
  const float inverse = rsqrtf(warp_sum(z.sum([](float v) { return v * v; })) * p.per_size + p.eps);
#pragma unroll
  for (int i = 0; i < Row<T>::kVectors; ++i) {
    if (!z.has(i)) break;
    Normed<T> normed(z.vector[i], inverse, Vec<T>::load(gain + z.offset(i)));
    if (sink) normed.store(sink + z.offset(i));
    rope.apply(normed.at);
    out.store(i, z.offset(i), normed.at);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) qk_norm_rope_store_kernel(const StoreParams<T, PlainOut<T>> p) {
  const int row = row_of_warp();
  if (row >= p.rows) return;
  const Row<T> z(p.qkv + int64_t(row) * p.size, p.size);
  const int part = row % 3, token = row / 3;
  const Place at(p, token);
  if (part == kValue) return store_value(z, p.v_ring + at.in_ring);
  const Rotations<Vec<T>::kSize> rope(p.rope, at.frame, at.in_frame, z.first);
  const T* gain = part == kQuery ? p.q_gain : p.k_gain;
  const auto out = part == kQuery ? p.out.query(int64_t(token) * p.size) : p.out.key(at.in_ring);
  T* sink = part == kKey && at.slot < p.sinks ? p.k_sink + at.in_ring : nullptr;
  store_rotated(p, z, rope, gain, sink, out);
}

template <class T>
__global__ void __launch_bounds__(kRunThreads, kRunBlocks<T>)
    qk_norm_rope_store_kernel_int8(const StoreParams<T, Int8Out> p) {
  using Turns = Rotations<Vec<T>::kSize>;
  const int part = blockIdx.x % 3, token = blockIdx.x / 3 * kKeyRun + threadIdx.x / 32;
  const Row<T> z(p.qkv + (int64_t(token) * 3 + part) * p.size, p.size);
  const Place at(p, token);
  if (part == kValue) {
    store_value(z, p.v_ring + at.in_ring);
  } else if (part == kQuery) {
    const QueryInt8 query{p.out.q + int64_t(token) * p.size, p.out.q_scale + token, p.out.queries};
    T* const sink = nullptr;
    store_rotated(p, z, Turns(p.rope, at.frame, at.in_frame, z.first), p.q_gain, sink, query);
  } else {
    static __shared__ LargestOfRun largest;
    KeyInt8<T> key(z, p.out.k_offset, largest);
    T* const sink = at.slot < p.sinks ? p.k_sink + at.in_ring : nullptr;
    store_rotated(p, z, Turns(p.rope, at.frame, at.in_frame, z.first), p.k_gain, sink, key);
    __syncthreads();
    const Place to(p, token);  // found again: kept until now, it would take registers
    key.finish(p.out.k_ring + to.in_ring, p.out.k_scale + to.ring_token / kKeyRun, p.out.k_scales);
  }
}
}  // namespace longlive
