// qk_norm_rope_store, qk_norm_rope_store_int8: the kernels of qk_norm_rope_store.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/check.h"
#include "common/launch.h"
#include "elementwise/qk_norm_rope_store.cuh"

namespace longlive {
namespace {
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
StoreParams<T, Out> params(const Tensor& qkv, const Tensor& q_gain, const Tensor& k_gain, const Tensor& rope_time,
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
