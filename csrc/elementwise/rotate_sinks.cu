// rotate_sinks, rotate_sinks_int8: the kernels of rotate_sinks.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "common/launch.h"
#include "elementwise/rotate_sinks.cuh"

namespace longlive {
namespace {
struct Sizes {
  int64_t layers, sinks, ring, tokens, heads, size, time_pairs;
};

Sizes check(const Tensor& k_sink, const Tensor& rope_time, const Tensor& rope_space, const Tensor& k_ring,
            ScalarType ring_dtype) {
  vector_size(k_sink, "k_sink");
  LL_CHECK(k_sink.dim() == 5, "k_sink must have 5 dimensions, got ", k_sink.dim());
  LL_CHECK(k_ring.dim() == 5, "k_ring must have 5 dimensions, got ", k_ring.dim());
  LL_CHECK(rope_time.dim() == 3, "rope_time must have 3 dimensions, got ", rope_time.dim());
  const int64_t layers = k_sink.size(0), sinks = k_sink.size(1), tokens = k_sink.size(2), heads = k_sink.size(3);
  const int64_t size = heads * kHeadDim, ring = k_ring.size(1), time_pairs = rope_time.size(1);
  LL_CHECK(k_sink.size(4) == kHeadDim, "k_sink must have a last dimension of ", kHeadDim, ", got ", k_sink.size(4));
  LL_CHECK(heads > 0 && heads <= kMaxHeads, "k_sink must have 1 to ", kMaxHeads, " heads, got ", heads);
  LL_CHECK(ring >= sinks, "k_ring must have at least k_sink's ", sinks, " slots, got ", ring);
  check_tensor(k_sink, "k_sink", {layers, sinks, tokens, heads, kHeadDim}, k_sink.scalar_type(), k_sink);
  check_tensor(rope_time, "rope_time", {sinks, time_pairs, 2}, ScalarType::Float, k_sink, sizeof(float2));
  check_tensor(rope_space, "rope_space", {tokens, kPairs - time_pairs, 2}, ScalarType::Float, k_sink, sizeof(float2));
  check_tensor(k_ring, "k_ring", {layers, ring, tokens, heads, kHeadDim}, ring_dtype, k_sink);
  return {layers, sinks, ring, tokens, heads, size, time_pairs};
}

template <class T, class Ring>
RotateSinksParams<T, Ring> params(const Tensor& k_sink, const Tensor& rope_time, const Tensor& rope_space,
                                  const Sizes& n, const Ring& out) {
  return {data<T>(k_sink),
          {data<float2>(rope_time), data<float2>(rope_space), int(n.time_pairs)},
          out,
          int(n.layers * n.sinks * n.tokens),
          int(n.sinks),
          int(n.ring),
          int(n.tokens),
          int(n.size)};
}

void rotate_sinks(const Tensor& k_sink, const Tensor& rope_time, const Tensor& rope_space, const Tensor& k_ring) {
  const Sizes n = check(k_sink, rope_time, rope_space, k_ring, k_sink.scalar_type());
  const unsigned blocks = blocks_for_rows(n.layers * n.sinks * n.tokens);
  if (blocks == 0) return;
  torch::stable::accelerator::DeviceGuard guard(k_sink.get_device_index());
  launch_as(k_sink, [&]<class T>(T, cudaStream_t stream) {
    const auto p = params<T>(k_sink, rope_time, rope_space, n, PlainRing<T>{data<T>(k_ring)});
    rotate_sinks_kernel<T><<<blocks, kThreads, 0, stream>>>(p);
  });
}

void rotate_sinks_int8(const Tensor& k_sink, const Tensor& rope_time, const Tensor& rope_space, const Tensor& k_offset,
                       const Tensor& k_ring, const Tensor& k_scale) {
  const Sizes n = check(k_sink, rope_time, rope_space, k_ring, ScalarType::Char);
  const int64_t k_scales = check_key_scales(k_scale, {n.layers, n.heads}, n.ring, n.tokens, k_sink);
  check_whole_warps(k_sink, "k_sink", n.heads);
  check_tensor(k_offset, "k_offset", {n.layers, n.heads, kHeadDim}, ScalarType::Float, k_sink);
  const unsigned blocks = blocks_for_runs(n.layers * n.sinks * n.tokens);
  if (blocks == 0) return;
  torch::stable::accelerator::DeviceGuard guard(k_sink.get_device_index());
  launch_as(k_sink, [&]<class T>(T, cudaStream_t stream) {
    const Int8Ring out{data<int8_t>(k_ring), data<float>(k_scale), data<float>(k_offset), int(k_scales)};
    rotate_sinks_kernel_int8<T><<<blocks, kRunThreads, 0, stream>>>(params<T>(k_sink, rope_time, rope_space, n, out));
  });
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("rotate_sinks", TORCH_BOX(&longlive::rotate_sinks));
  m.impl("rotate_sinks_int8", TORCH_BOX(&longlive::rotate_sinks_int8));
}
