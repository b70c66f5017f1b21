// qk_norm_rope_store, qk_norm_rope_store_int8: from the QKV product to rotated queries and the ring's keys and values,
// in one pass over memory. A warp has a row in its registers: a token has three, its q, k and v. Queries and keys leave
// as they are, or as int8 with their scales; then a block has a run of tokens, the q, k or v of each.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/check.h"
#include "common/heads.cuh"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "common/rope.cuh"
#include "common/vec.cuh"

namespace longlive {
namespace {
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
struct Params {
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
__global__ void __launch_bounds__(kThreads) qk_norm_rope_store_kernel(const Params<T, PlainOut<T>> p) {
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
    qk_norm_rope_store_kernel_int8(const Params<T, Int8Out> p) {
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
    __shared__ LargestOfRun largest;
    KeyInt8<T> key(z, p.out.k_offset, largest);
    T* const sink = at.slot < p.sinks ? p.k_sink + at.in_ring : nullptr;
    store_rotated(p, z, Turns(p.rope, at.frame, at.in_frame, z.first), p.k_gain, sink, key);
    __syncthreads();
    const Place to(p, token);  // found again: kept until now, it would take registers
    key.finish(p.out.k_ring + to.in_ring, p.out.k_scale + to.ring_token / kKeyRun, p.out.k_scales);
  }
}

struct Sizes {
  int64_t ring, tokens, heads, size, frames, sinks, time_pairs;
};

Sizes check(const Tensor& qkv, const Tensor& q_gain, const Tensor& k_gain, const Tensor& rope_time,
            const Tensor& rope_space, const Tensor& k_ring, const Tensor& v_ring, const Tensor& k_sink,
            const Tensor& slots, ScalarType ring_dtype) {
  vector_size(qkv, "qkv");
  LL_CHECK(k_ring.dim() == 4, "k_ring must have 4 dimensions, got ", k_ring.dim());
  LL_CHECK(k_sink.dim() == 4, "k_sink must have 4 dimensions, got ", k_sink.dim());
  LL_CHECK(slots.dim() == 1, "slots must have 1 dimension, got ", slots.dim());
  LL_CHECK(rope_time.dim() == 3, "rope_time must have 3 dimensions, got ", rope_time.dim());
  const int64_t ring = k_ring.size(0), tokens = k_ring.size(1), heads = k_ring.size(2), head_dim = k_ring.size(3);
  const int64_t size = heads * kHeadDim, frames = slots.size(0), sinks = k_sink.size(0), time_pairs = rope_time.size(1);
  LL_CHECK(head_dim == kHeadDim, "k_ring must have a last dimension of ", kHeadDim, ", got ", head_dim);
  LL_CHECK(heads > 0 && heads <= kMaxHeads, "k_ring must have 1 to ", kMaxHeads, " heads, got ", heads);
  LL_CHECK(frames > 0 && frames <= ring, "slots must name 1 to ", ring, " frames of k_ring, got ", frames);
  const ScalarType dtype = qkv.scalar_type();
  check_tensor(qkv, "qkv", {frames * tokens, 3 * size}, dtype, qkv);
  check_tensor(q_gain, "q_gain", {size}, dtype, qkv);
  check_tensor(k_gain, "k_gain", {size}, dtype, qkv);
  check_tensor(rope_time, "rope_time", {frames, time_pairs, 2}, ScalarType::Float, qkv, sizeof(float2));
  check_tensor(rope_space, "rope_space", {tokens, kPairs - time_pairs, 2}, ScalarType::Float, qkv, sizeof(float2));
  check_tensor(k_ring, "k_ring", {ring, tokens, heads, kHeadDim}, ring_dtype, qkv);
  check_tensor(v_ring, "v_ring", {ring, tokens, heads, kHeadDim}, dtype, qkv);
  check_tensor(k_sink, "k_sink", {sinks, tokens, heads, kHeadDim}, dtype, qkv);
  check_tensor(slots, "slots", {frames}, ScalarType::Long, qkv, sizeof(int64_t));
  return {ring, tokens, heads, size, frames, sinks, time_pairs};
}

template <class T, class Out>
Params<T, Out> params(const Tensor& qkv, const Tensor& q_gain, const Tensor& k_gain, const Tensor& rope_time,
                      const Tensor& rope_space, const Tensor& v_ring, const Tensor& k_sink, const Tensor& slots,
                      double eps, const Sizes& n, const Out& out) {
  return {data<T>(qkv),
          data<T>(q_gain),
          data<T>(k_gain),
          {data<float2>(rope_time), data<float2>(rope_space), int(n.time_pairs)},
          out,
          data<T>(v_ring),
          data<T>(k_sink),
          data<int64_t>(slots),
          int(3 * n.frames * n.tokens),
          int(n.tokens),
          int(n.size),
          int(n.sinks),
          1.f / float(n.size),
          float(eps)};
}

Tensor qk_norm_rope_store(const Tensor& qkv, const Tensor& q_gain, const Tensor& k_gain, const Tensor& rope_time,
                          const Tensor& rope_space, const Tensor& k_ring, const Tensor& v_ring, const Tensor& k_sink,
                          const Tensor& slots, double eps) {
  const Sizes n = check(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, qkv.scalar_type());
  torch::stable::accelerator::DeviceGuard guard(qkv.get_device_index());
  Tensor q = torch::stable::new_empty(qkv, {n.frames * n.tokens, n.heads, kHeadDim});
  const unsigned blocks = blocks_for_rows(3 * n.frames * n.tokens);
  if (blocks == 0) return q;
  launch_as(qkv, [&]<class T>(T, cudaStream_t stream) {
    const PlainOut<T> out{data<T>(q), data<T>(k_ring)};
    const auto p = params<T>(qkv, q_gain, k_gain, rope_time, rope_space, v_ring, k_sink, slots, eps, n, out);
    qk_norm_rope_store_kernel<T><<<blocks, kThreads, 0, stream>>>(p);
  });
  return q;
}

std::tuple<Tensor, Tensor> qk_norm_rope_store_int8(const Tensor& qkv, const Tensor& q_gain, const Tensor& k_gain,
                                                   const Tensor& rope_time, const Tensor& rope_space,
                                                   const Tensor& k_offset, const Tensor& k_ring, const Tensor& k_scale,
                                                   const Tensor& v_ring, const Tensor& k_sink, const Tensor& slots,
                                                   double eps) {
  const Sizes n = check(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, ScalarType::Char);
  const int64_t queries = n.frames * n.tokens, k_scales = check_key_scales(k_scale, {n.heads}, n.ring, n.tokens, qkv);
  LL_CHECK(n.heads * queries <= INT32_MAX, "qkv must have fewer tokens, got ", queries);
  check_whole_warps(qkv, "k_ring", n.heads);
  check_tensor(k_offset, "k_offset", {n.heads, kHeadDim}, ScalarType::Float, qkv);
  torch::stable::accelerator::DeviceGuard guard(qkv.get_device_index());
  Tensor q = torch::stable::new_empty(qkv, {queries, n.heads, kHeadDim}, ScalarType::Char);
  Tensor q_scale = torch::stable::new_empty(qkv, {n.heads, queries}, ScalarType::Float);
  const unsigned blocks = blocks_for_runs(3 * queries);
  if (blocks == 0) return {q, q_scale};
  launch_as(qkv, [&]<class T>(T, cudaStream_t stream) {
    const Int8Out out{data<int8_t>(q),       data<int8_t>(k_ring), data<float>(q_scale), data<float>(k_scale),
                      data<float>(k_offset), int(queries),         int(k_scales)};
    const auto p = params<T>(qkv, q_gain, k_gain, rope_time, rope_space, v_ring, k_sink, slots, eps, n, out);
    qk_norm_rope_store_kernel_int8<T><<<blocks, kRunThreads, 0, stream>>>(p);
  });
  return {q, q_scale};
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("qk_norm_rope_store", TORCH_BOX(&longlive::qk_norm_rope_store));
  m.impl("qk_norm_rope_store_int8", TORCH_BOX(&longlive::qk_norm_rope_store_int8));
}
