// ring_attention: the kernel of ring_attention.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "attention/ring_attention.cuh"
#include "common/check.h"
#include "common/launch.h"

namespace longlive {
namespace {
using Bf16 = attention::Config<bf16, 192, 4>;
using Int8 = attention::Config<int8_t, 192, 2, 3>;

static_assert(Bf16::kTileKeys == Int8::kTileKeys);

// Keys from which on split-KV of the last wave saves more than the second kernel costs.
constexpr int kSplitFrom = 16 * Bf16::kTileKeys;

// Fewer output tiles leave no CTA more work than it can mark as to be done again; Hopper has more than 64 of them.
constexpr int64_t kMaxTiles = 64 * int64_t(attention::kMaxWork);

// `row` is the distance of rows in elements.
template <class T>
sm90::TensorMap map_of(const Tensor& t, int64_t row, int64_t rows, int64_t columns, int box_rows) {
  return sm90::matrix_map(data<const T>(t), rows, columns, row * int64_t(sizeof(T)), box_rows);
}

struct Sizes {
  int64_t rows, heads, slots, size, tokens, columns;
};

Sizes sizes_of(const Tensor& q, const Tensor& k_ring) {
  LL_CHECK(q.dim() == 3, "q must have 3 dimensions, got ", q.dim());
  LL_CHECK(k_ring.dim() == 4, "k_ring must have 4 dimensions, got ", k_ring.dim());
  const int64_t rows = q.size(0), heads = q.size(1), slots = k_ring.size(0), size = k_ring.size(1);
  const int64_t tokens = slots * size;
  check_shape(q, "q", {rows, heads, kHeadDim});
  LL_CHECK(heads > 0 && tokens > 0, "k_ring must not be empty");
  return {rows, heads, slots, size, tokens, heads * kHeadDim};
}

void check_ring(const Tensor& q, const Tensor& k_ring, const Tensor& v_ring, const Tensor& valid, const Sizes& n,
                ScalarType key_type) {
  check_tensor(k_ring, "k_ring", {n.slots, n.size, n.heads, kHeadDim}, key_type, q);
  check_tensor(v_ring, "v_ring", {n.slots, n.size, n.heads, kHeadDim}, ScalarType::BFloat16, q);
  check_tensor(valid, "valid", {1}, ScalarType::Int, q, sizeof(int));
  const int64_t steps = n.heads * (n.rows / attention::kTileRows + 1) * (n.tokens / Bf16::kTileKeys + 2);
  LL_CHECK(steps <= INT32_MAX / 2, "q must have fewer rows for ", n.tokens, " keys of ", n.heads, " heads, got ",
           n.rows);
}

// The launch, after the checks. `maps` and the scales are the kind's own.
template <class C>
Tensor attend(const Tensor& like, const attention::Maps& maps, const Tensor& valid, const Sizes& n,
              const float* q_scale = nullptr, const float* k_scale = nullptr, int64_t k_scales = 0) {
  const int device = like.get_device_index();
  Tensor out = torch::stable::new_empty(like, {n.rows, n.heads, kHeadDim});
  const int ctas = processors(device);
  const bool split_kv = n.tokens >= kSplitFrom;
  const int64_t partials = split_kv ? attention::Schedule::partials(ctas) : 0;
  Tensor partial_out = torch::stable::new_empty(like, {partials, attention::kTileRows, kHeadDim}, ScalarType::Float);
  Tensor partial_stats = torch::stable::new_empty(like, {partials, attention::kTileRows, 2}, ScalarType::Float);
  const attention::Params p{data<bf16>(out),
                            data<float>(partial_out),
                            data<float2>(partial_stats),
                            data<const int>(valid),
                            int(n.rows),
                            int(n.heads),
                            int(n.tokens),
                            ctas,
                            split_kv,
                            q_scale,
                            k_scale,
                            int(k_scales)};
  LL_CUDA_CHECK(attention::launch<C>(maps, p, current_stream(device)));
  return out;
}

Tensor ring_attention(const Tensor& q, const Tensor& k_ring, const Tensor& v_ring, const Tensor& valid) {
  const Sizes n = sizes_of(q, k_ring);
  check_like(q, "q", ScalarType::BFloat16, q);
  check_aligned(q, "q");
  LL_CHECK(q.stride(2) == 1 && q.stride(1) == kHeadDim && q.stride(0) % 8 == 0,
           "q must have contiguous rows that start at multiples of ", kVectorBytes, " bytes");
  check_ring(q, k_ring, v_ring, valid, n, ScalarType::BFloat16);
  torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  if (n.rows == 0) return torch::stable::new_empty(q, {0, n.heads, kHeadDim});
  return attend<Bf16>(v_ring,
                      {map_of<bf16>(q, q.stride(0), n.rows, n.columns, attention::kRows),
                       map_of<bf16>(k_ring, n.columns, n.tokens, n.columns, Bf16::kTileKeys),
                       map_of<bf16>(v_ring, n.columns, n.tokens, n.columns, Bf16::kTileKeys)},
                      valid, n);
}

Tensor ring_attention_int8(const Tensor& q, const Tensor& q_scale, const Tensor& k_ring, const Tensor& k_scale,
                           const Tensor& v_ring, const Tensor& valid) {
  const Sizes n = sizes_of(q, k_ring);
  check_tensor(q, "q", {n.rows, n.heads, kHeadDim}, ScalarType::Char, q);
  check_tensor(q_scale, "q_scale", {n.heads, n.rows}, ScalarType::Float, q, sizeof(float));
  check_ring(q, k_ring, v_ring, valid, n, ScalarType::Char);
  const int64_t k_scales = check_key_scales(k_scale, {n.heads}, n.slots, n.size, q);
  check_aligned(k_scale, "k_scale");
  LL_CHECK(k_scales % 4 == 0, "k_scale must have a multiple of 4 scales a head, got ", k_scales);
  LL_CHECK(n.heads * ceil_div(n.rows, attention::kTileRows) < kMaxTiles, "q must have fewer rows, got ", n.rows);
  torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  if (n.rows == 0) return torch::stable::new_empty(v_ring, {0, n.heads, kHeadDim});
  return attend<Int8>(v_ring,
                      {map_of<int8_t>(q, n.columns, n.rows, n.columns, attention::kRows),
                       map_of<int8_t>(k_ring, n.columns, n.tokens, n.columns, Int8::kTileKeys),
                       map_of<bf16>(v_ring, n.columns, n.tokens, n.columns, Int8::kTileKeys)},
                      valid, n, data<const float>(q_scale), data<const float>(k_scale), k_scales);
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("ring_attention", TORCH_BOX(&longlive::ring_attention));
  m.impl("ring_attention_int8", TORCH_BOX(&longlive::ring_attention_int8));
}
