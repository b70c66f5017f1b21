// ring_attention: the kernel of ring_attention.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "attention/ring.h"
#include "attention/ring_attention.cuh"
#include "common/launch.h"

namespace longlive {
namespace {
using Bf16 = attention::Config<bf16, 192, 4>;
using Int8 = attention::Config<int8_t, 192, 2, 3>;

// Fewer output tiles leave no CTA more work than it can mark as to be done again; Hopper has more than 64 of them.
constexpr int64_t kMaxTiles = 64 * int64_t(attention::kMaxWork);

// `row` is the distance of rows in elements.
template <class T>
sm90::TensorMap map_of(const Tensor& t, int64_t row, int64_t rows, int64_t columns, int box_rows) {
  return sm90::matrix_map(data<const T>(t), rows, columns, row * int64_t(sizeof(T)), box_rows);
}

template <class C>
void check(const Tensor& q, const Tensor& k_ring, const Tensor& v_ring, const Tensor& valid, const attention::Sizes& n,
           ScalarType key_type) {
  attention::check_ring<typename attention::Params<C>::Schedule>(q, k_ring, valid, n, key_type, C::kTileKeys);
  check_tensor(v_ring, "v_ring", {n.slots, n.size, n.heads, kHeadDim}, ScalarType::BFloat16, q);
}

// The launch, after the checks. The scales are int8's own.
template <class C>
Tensor attend(const Tensor& q, int64_t q_row, const Tensor& k_ring, const Tensor& v_ring, const Tensor& valid,
              const attention::Sizes& n, const float* q_scale = nullptr, const float* k_scale = nullptr,
              int64_t k_scales = 0) {
  using Params = attention::Params<C>;
  const int device = q.get_device_index();
  torch::stable::accelerator::DeviceGuard guard(device);
  Tensor out = torch::stable::new_empty(v_ring, {n.rows, n.heads, kHeadDim});
  if (n.rows == 0) return out;
  const int ctas = processors(device);
  const bool split_kv = n.tokens >= attention::kSplitFrom;
  const attention::PartialTensors<typename Params::Schedule> partial(out, ctas, split_kv);
  using Key = typename C::Key;
  const attention::Maps maps{map_of<Key>(q, q_row, n.rows, n.columns, attention::kRows),
                             map_of<Key>(k_ring, n.columns, n.tokens, n.columns, C::kTileKeys),
                             map_of<bf16>(v_ring, n.columns, n.tokens, n.columns, C::kTileKeys)};
  const Params p{.out = data<bf16>(out),
                 .partials = partial.partials(),
                 .valid = data<const int>(valid),
                 .rows = int(n.rows),
                 .heads = int(n.heads),
                 .tokens = int(n.tokens),
                 .ctas = ctas,
                 .split_kv = split_kv,
                 .q_scale = q_scale,
                 .k_scale = k_scale,
                 .k_scales = int(k_scales)};
  LL_CUDA_CHECK(attention::launch<C>(maps, p, current_stream(device)));
  return out;
}

Tensor ring_attention(const Tensor& q, const Tensor& k_ring, const Tensor& v_ring, const Tensor& valid) {
  const attention::Sizes n = attention::sizes_of(q, k_ring);
  check_like(q, "q", ScalarType::BFloat16, q);
  check_aligned(q, "q");
  LL_CHECK(q.stride(2) == 1 && q.stride(1) == kHeadDim && q.stride(0) % 8 == 0,
           "q must have contiguous rows that start at multiples of ", kVectorBytes, " bytes");
  check<Bf16>(q, k_ring, v_ring, valid, n, ScalarType::BFloat16);
  return attend<Bf16>(q, q.stride(0), k_ring, v_ring, valid, n);
}

Tensor ring_attention_int8(const Tensor& q, const Tensor& q_scale, const Tensor& k_ring, const Tensor& k_scale,
                           const Tensor& v_ring, const Tensor& valid) {
  const attention::Sizes n = attention::sizes_of(q, k_ring);
  check_tensor(q, "q", {n.rows, n.heads, kHeadDim}, ScalarType::Char, q);
  check_tensor(q_scale, "q_scale", {n.heads, n.rows}, ScalarType::Float, q, sizeof(float));
  check<Int8>(q, k_ring, v_ring, valid, n, ScalarType::Char);
  const int64_t k_scales = attention::check_copied_scales(k_scale, n, q);
  LL_CHECK(n.heads * ceil_div(n.rows, attention::Params<Int8>::Schedule::kRows) < kMaxTiles,
           "q must have fewer rows, got ", n.rows);
  return attend<Int8>(q, n.columns, k_ring, v_ring, valid, n, data<const float>(q_scale), data<const float>(k_scale),
                      k_scales);
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("ring_attention", TORCH_BOX(&longlive::ring_attention));
  m.impl("ring_attention_int8", TORCH_BOX(&longlive::ring_attention_int8));
}
