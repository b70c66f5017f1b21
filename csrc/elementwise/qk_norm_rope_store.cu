// qk_norm_rope_store: from the QKV product to rotated queries and the ring's keys and values, in one pass over memory.
// A warp has a row in its registers: a token has three, its q, k and v.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "common/rope.cuh"
#include "common/vec.cuh"

namespace longlive {
namespace {
template <class T>
struct Params {
  const T* qkv;              // [frames * tokens, 3, size]
  const T *q_gain, *k_gain;  // [size]
  Rope rope;
  T* q;                           // [frames * tokens, size]
  T *k_ring, *v_ring;             // [ring, tokens, size]
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

template <class T>
__global__ void __launch_bounds__(kThreads) qk_norm_rope_store_kernel(const Params<T> p) {
  using V = Vec<T>;
  using R = Row<T>;
  enum { kQuery, kKey, kValue };
  const int row = row_of_warp();
  if (row >= p.rows) return;
  const R z(p.qkv + int64_t(row) * p.size, p.size);
  const int part = row % 3, token = row / 3, frame = token / p.tokens, in_frame = token % p.tokens;
  const int64_t slot = p.slots[frame], in_ring = (slot * p.tokens + in_frame) * p.size;

  if (part == kValue) {
#pragma unroll
    for (int i = 0; i < R::kVectors; ++i)
      if (z.has(i)) z.vector[i].store(p.v_ring + in_ring + z.offset(i));
    return;
  }

  static_assert(R::kStride % kHeadDim == 0);  // a lane's vectors lie whole heads apart, so they share rotations
  const Rotations<V::kSize> rope(p.rope, frame, in_frame, z.first);
  const T* gain = part == kQuery ? p.q_gain : p.k_gain;
  T* out = part == kQuery ? p.q + int64_t(token) * p.size : p.k_ring + in_ring;
  T* sink = part == kKey && slot < p.sinks ? p.k_sink + in_ring : nullptr;

  const float inverse = rsqrtf(warp_sum(z.sum([](float v) { return v * v; })) * p.per_size + p.eps);
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i) {
    if (!z.has(i)) break;
    Normed<T> normed(z.vector[i], inverse, V::load(gain + z.offset(i)));
    if (sink) normed.store(sink + z.offset(i));
    rope.apply(normed.at);
    normed.store(out + z.offset(i));
  }
}

Tensor qk_norm_rope_store(const Tensor& qkv, const Tensor& q_gain, const Tensor& k_gain, const Tensor& rope_time,
                          const Tensor& rope_space, const Tensor& k_ring, const Tensor& v_ring, const Tensor& k_sink,
                          const Tensor& slots, double eps) {
  vector_size(qkv, "qkv");
  LL_CHECK(k_ring.dim() == 4, "k_ring must have 4 dimensions, got ", k_ring.dim());
  LL_CHECK(k_sink.dim() == 4, "k_sink must have 4 dimensions, got ", k_sink.dim());
  LL_CHECK(slots.dim() == 1, "slots must have 1 dimension, got ", slots.dim());
  LL_CHECK(rope_time.dim() == 3, "rope_time must have 3 dimensions, got ", rope_time.dim());
  const int64_t ring = k_ring.size(0), tokens = k_ring.size(1), heads = k_ring.size(2), head_dim = k_ring.size(3);
  const int64_t size = heads * kHeadDim, frames = slots.size(0), sinks = k_sink.size(0), time_pairs = rope_time.size(1);
  LL_CHECK(head_dim == kHeadDim, "k_ring must have a last dimension of ", kHeadDim, ", got ", head_dim);
  LL_CHECK(heads > 0 && size <= kMaxSize, "k_ring must have 1 to ", kMaxSize / kHeadDim, " heads, got ", heads);
  LL_CHECK(frames > 0 && frames <= ring, "slots must name 1 to ", ring, " frames of k_ring, got ", frames);
  const ScalarType dtype = qkv.scalar_type();
  check_tensor(qkv, "qkv", {frames * tokens, 3 * size}, dtype, qkv);
  check_tensor(q_gain, "q_gain", {size}, dtype, qkv);
  check_tensor(k_gain, "k_gain", {size}, dtype, qkv);
  check_tensor(rope_time, "rope_time", {frames, time_pairs, 2}, ScalarType::Float, qkv, sizeof(float2));
  check_tensor(rope_space, "rope_space", {tokens, kPairs - time_pairs, 2}, ScalarType::Float, qkv, sizeof(float2));
  check_tensor(k_ring, "k_ring", {ring, tokens, heads, kHeadDim}, dtype, qkv);
  check_tensor(v_ring, "v_ring", {ring, tokens, heads, kHeadDim}, dtype, qkv);
  check_tensor(k_sink, "k_sink", {sinks, tokens, heads, kHeadDim}, dtype, qkv);
  check_tensor(slots, "slots", {frames}, ScalarType::Long, qkv, sizeof(int64_t));
  torch::stable::accelerator::DeviceGuard guard(qkv.get_device_index());
  Tensor q = torch::stable::new_empty(qkv, {frames * tokens, heads, kHeadDim});
  if (tokens == 0) return q;
  launch_as(qkv, [&]<class T>(T, cudaStream_t stream) {
    const Params<T> p{data<T>(qkv),
                      data<T>(q_gain),
                      data<T>(k_gain),
                      {data<float2>(rope_time), data<float2>(rope_space), int(time_pairs)},
                      data<T>(q),
                      data<T>(k_ring),
                      data<T>(v_ring),
                      data<T>(k_sink),
                      data<int64_t>(slots),
                      int(3 * frames * tokens),
                      int(tokens),
                      int(size),
                      int(sinks),
                      1.f / float(size),
                      float(eps)};
    qk_norm_rope_store_kernel<T><<<blocks_for_rows(3 * frames * tokens), kThreads, 0, stream>>>(p);
  });
  return q;
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("qk_norm_rope_store", TORCH_BOX(&longlive::qk_norm_rope_store));
}
