// ring_attention: the kernel of ring_attention.cuh at the edge to torch.
#include "attention/ring_attention.cuh"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "attention/ring.h"
#include "common/launch.h"

namespace longlive {
namespace {
using Config = attention::Config<192, 4>;
using Params = attention::Params<Config>;

// `row` is the distance of rows in elements.
sm90::TensorMap map_of(const Tensor& t, int64_t row, int64_t rows, int64_t columns, int box_rows) {
  return sm90::matrix_map(data<const bf16>(t), rows, columns, row * int64_t(sizeof(bf16)), box_rows);
}

Tensor ring_attention(const Tensor& q, const Tensor& k_ring, const Tensor& v_ring, const Tensor& valid) {
  const attention::Sizes n = attention::sizes_of(q, k_ring);
  check_like(q, "q", ScalarType::BFloat16, q);
  check_aligned(q, "q");
  LL_CHECK(q.stride(2) == 1 && q.stride(1) == kHeadDim && q.stride(0) % 8 == 0,
           "q must have contiguous rows that start at multiples of ", kVectorBytes, " bytes");
  attention::check_ring<Params::Schedule>(q, k_ring, valid, n, ScalarType::BFloat16, Config::kTileKeys);
  check_tensor(v_ring, "v_ring", {n.slots, n.size, n.heads, kHeadDim}, ScalarType::BFloat16, q);
  const int device = q.get_device_index();
  torch::stable::accelerator::DeviceGuard guard(device);
  Tensor out = torch::stable::new_empty(v_ring, {n.rows, n.heads, kHeadDim});
  if (n.rows == 0) return out;
  const int ctas = processors(device);
  const bool split_kv = n.tokens >= attention::kSplitFrom;
  const attention::PartialTensors<Params::Schedule> partial(out, ctas, split_kv);
  const attention::Maps maps{map_of(q, q.stride(0), n.rows, n.columns, attention::kRows),
                             map_of(k_ring, n.columns, n.tokens, n.columns, Config::kTileKeys),
                             map_of(v_ring, n.columns, n.tokens, n.columns, Config::kTileKeys)};
  const Params p{.out = data<bf16>(out),
                 .partials = partial.partials(),
                 .valid = data<const int>(valid),
                 .rows = int(n.rows),
                 .heads = int(n.heads),
                 .tokens = int(n.tokens),
                 .ctas = ctas,
                 .split_kv = split_kv};
  LL_CUDA_CHECK(attention::launch<Config>(maps, p, current_stream(device)));
  return out;
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("ring_attention", TORCH_BOX(&longlive::ring_attention)); }
