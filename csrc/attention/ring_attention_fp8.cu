// ring_attention_fp8: the kernel of ring_attention_fp8.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "attention/ring.h"
#include "attention/ring_attention_fp8.cuh"
#include "common/launch.h"

namespace longlive {
namespace {
namespace fp8 = attention::fp8;
using Shared = fp8::Shared<4, 4>;
using Schedule = fp8::Params::Schedule;

Tensor ring_attention_fp8(const Tensor& q, const Tensor& q_scale, const Tensor& k_ring, const Tensor& k_scale,
                          const Tensor& v_ring, const Tensor& v_scale, const Tensor& v_offset, const Tensor& valid) {
  const attention::Sizes n = attention::sizes_of(q, k_ring);
  check_tensor(q, "q", {n.rows, n.heads, kHeadDim}, ScalarType::Char, q);
  check_tensor(q_scale, "q_scale", {n.heads, n.rows}, ScalarType::Float, q, sizeof(float));
  attention::check_ring<Schedule>(q, k_ring, valid, n, ScalarType::Char, fp8::kTileKeys);
  const int64_t k_scales = attention::check_copied_scales(k_scale, n, q);
  LL_CHECK(v_ring.dim() == 3, "v_ring must have 3 dimensions, got ", v_ring.dim());
  const int64_t places = v_ring.size(2);
  LL_CHECK(places >= n.tokens && places % kValueGroup == 0, "v_ring must have a multiple of ", kValueGroup,
           " places, at least ", n.tokens, ", got ", places);
  check_tensor(v_ring, "v_ring", {n.heads, kHeadDim, places}, ScalarType::Float8_e4m3fn, q);
  check_tensor(v_scale, "v_scale", {n.heads, kHeadDim}, ScalarType::Float, q);
  check_tensor(v_offset, "v_offset", {n.heads, kHeadDim}, ScalarType::Float, q);
  const int device = q.get_device_index();
  torch::stable::accelerator::DeviceGuard guard(device);
  Tensor out = torch::stable::new_empty(q, {n.rows, n.heads, kHeadDim}, ScalarType::BFloat16);
  if (n.rows == 0) return out;
  const int ctas = processors(device);
  const bool split_kv = n.tokens >= attention::kSplitFrom;
  const attention::PartialTensors<Schedule> partial(out, ctas, split_kv);
  const fp8::Maps maps{sm90::matrix_map(data<const int8_t>(q), n.rows, n.columns, n.columns, fp8::kRows),
                       sm90::matrix_map(data<const int8_t>(k_ring), n.tokens, n.columns, n.columns, fp8::kTileKeys),
                       sm90::matrix_map(data<const uint8_t>(v_ring), n.columns, places, places, kHeadDim)};
  const fp8::Params p{.out = data<bf16>(out),
                      .partials = partial.partials(),
                      .valid = data<const int>(valid),
                      .rows = int(n.rows),
                      .heads = int(n.heads),
                      .tokens = int(n.tokens),
                      .ctas = ctas,
                      .split_kv = split_kv,
                      .q_scale = data<const float>(q_scale),
                      .k_scale = data<const float>(k_scale),
                      .k_scales = int(k_scales),
                      .v_scale = data<const float>(v_scale),
                      .v_offset = data<const float>(v_offset)};
  LL_CUDA_CHECK(fp8::launch<Shared>(maps, p, current_stream(device)));
  return out;
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("ring_attention_fp8", TORCH_BOX(&longlive::ring_attention_fp8));
}
