// ring_attention: the kernel of ring_attention.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "attention/ring_attention.cuh"
#include "common/check.h"
#include "common/launch.h"

namespace longlive {
namespace {
using Config = attention::Config<192, 4>;

// Keys from which on split-KV of the last wave saves more than the second kernel costs.
constexpr int kSplitFrom = 16 * Config::kTileKeys;

sm90::TensorMap map_of(const Tensor& t, int64_t stride, int64_t rows, int64_t columns, int box_rows) {
  return sm90::matrix_map(data<const bf16>(t), rows, columns, stride * int64_t(sizeof(bf16)), box_rows);
}

Tensor ring_attention(const Tensor& q, const Tensor& k_ring, const Tensor& v_ring, const Tensor& valid) {
  LL_CHECK(q.dim() == 3, "q must have 3 dimensions, got ", q.dim());
  LL_CHECK(k_ring.dim() == 4, "k_ring must have 4 dimensions, got ", k_ring.dim());
  const int64_t rows = q.size(0), heads = q.size(1), slots = k_ring.size(0), size = k_ring.size(1);
  const int64_t tokens = slots * size, columns = heads * kHeadDim;
  check_shape(q, "q", {rows, heads, kHeadDim});
  check_like(q, "q", ScalarType::BFloat16, q);
  check_aligned(q, "q");
  LL_CHECK(q.stride(2) == 1 && q.stride(1) == kHeadDim && q.stride(0) % 8 == 0,
           "q must have contiguous rows that start at multiples of ", kVectorBytes, " bytes");
  check_tensor(k_ring, "k_ring", {slots, size, heads, kHeadDim}, ScalarType::BFloat16, q);
  check_tensor(v_ring, "v_ring", {slots, size, heads, kHeadDim}, ScalarType::BFloat16, q);
  check_tensor(valid, "valid", {1}, ScalarType::Int, q, sizeof(int));
  LL_CHECK(heads > 0 && tokens > 0, "k_ring must not be empty");
  const int64_t steps = heads * (rows / attention::kTileRows + 1) * (tokens / Config::kTileKeys + 2);
  LL_CHECK(steps <= INT32_MAX / 2, "q must have fewer rows for ", tokens, " keys of ", heads, " heads, got ", rows);

  torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  Tensor out = torch::stable::new_empty(q, {rows, heads, kHeadDim});
  if (rows == 0) return out;
  const int ctas = processors(q.get_device_index());
  const bool split_kv = tokens >= kSplitFrom;
  const int64_t partials = split_kv ? attention::Schedule::partials(ctas) : 0;
  Tensor partial_out = torch::stable::new_empty(q, {partials, attention::kTileRows, kHeadDim}, ScalarType::Float);
  Tensor partial_stats = torch::stable::new_empty(q, {partials, attention::kTileRows, 2}, ScalarType::Float);
  const attention::Params p{data<bf16>(out),
                            data<float>(partial_out),
                            data<float2>(partial_stats),
                            data<const int>(valid),
                            int(rows),
                            int(heads),
                            int(tokens),
                            ctas,
                            split_kv};
  LL_CUDA_CHECK(attention::launch<Config>(map_of(q, q.stride(0), rows, columns, attention::kRows),
                                          map_of(k_ring, columns, tokens, columns, Config::kTileKeys),
                                          map_of(v_ring, columns, tokens, columns, Config::kTileKeys), p,
                                          current_stream(q.get_device_index())));
  return out;
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("ring_attention", TORCH_BOX(&longlive::ring_attention)); }
