// quantize_keys: the kernels of quantize_keys.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "common/launch.h"
#include "elementwise/quantize_keys.cuh"

namespace longlive {
namespace {
void quantize_keys(const Tensor& k, const Tensor& k_offset, const Tensor& k_ring, const Tensor& k_scale,
                   const Tensor& slots) {
  vector_size(k, "k");
  LL_CHECK(k.dim() == 4, "k must have 4 dimensions, got ", k.dim());
  LL_CHECK(k_ring.dim() == 4, "k_ring must have 4 dimensions, got ", k_ring.dim());
  const int64_t frames = k.size(0), tokens = k.size(1), heads = k.size(2), ring = k_ring.size(0);
  LL_CHECK(k.size(3) == kHeadDim, "k must have a last dimension of ", kHeadDim, ", got ", k.size(3));
  LL_CHECK(heads > 0 && heads <= kMaxHeads, "k must have 1 to ", kMaxHeads, " heads, got ", heads);
  check_whole_warps(k, "k", heads);
  check_tensor(k, "k", {frames, tokens, heads, kHeadDim}, k.scalar_type(), k);
  check_tensor(k_ring, "k_ring", {ring, tokens, heads, kHeadDim}, ScalarType::Char, k);
  check_tensor(k_offset, "k_offset", {heads, kHeadDim}, ScalarType::Float, k);
  const int64_t k_scales = check_key_scales(k_scale, {heads}, ring, tokens, k);
  check_tensor(slots, "slots", {frames}, ScalarType::Long, k, sizeof(int64_t));
  LL_CHECK(frames <= ring, "k must have at most k_ring's ", ring, " frames, got ", frames);
  const unsigned blocks = blocks_for_runs(frames * tokens);
  if (blocks == 0) return;
  torch::stable::accelerator::DeviceGuard guard(k.get_device_index());
  launch_as(k, [&]<class T>(T, cudaStream_t stream) {
    const int64_t runs = tokens / kKeyRun;
    const QuantizeKeysParams<T> p{data<T>(k),           data<float>(k_offset), data<int8_t>(k_ring),
                                  data<float>(k_scale), data<int64_t>(slots),  int(runs),
                                  int(k_scales),        int(heads * kHeadDim)};
    quantize_keys_kernel<T><<<blocks, kRunThreads, 0, stream>>>(p);
  });
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("quantize_keys", TORCH_BOX(&longlive::quantize_keys)); }
