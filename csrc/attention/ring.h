#pragma once
// The ring and the partial results at the edge to torch, as both kinds of attention over the ring take them.
#include <torch/csrc/stable/ops.h>

#include "attention/combine.cuh"
#include "common/check.h"

namespace longlive::attention {
// Keys from which on split-KV of the last wave saves more than the second kernel costs.
constexpr int kSplitFrom = 3072;

struct Sizes {
  int64_t rows, heads, slots, size, tokens, columns;
};

inline Sizes sizes_of(const Tensor& q, const Tensor& k_ring) {
  LL_CHECK(q.dim() == 3, "q must have 3 dimensions, got ", q.dim());
  LL_CHECK(k_ring.dim() == 4, "k_ring must have 4 dimensions, got ", k_ring.dim());
  const int64_t rows = q.size(0), heads = q.size(1), slots = k_ring.size(0), size = k_ring.size(1);
  const int64_t tokens = slots * size;
  check_shape(q, "q", {rows, heads, kHeadDim});
  LL_CHECK(heads > 0 && tokens > 0, "k_ring must not be empty");
  return {rows, heads, slots, size, tokens, heads * kHeadDim};
}

// Steps of the schedule are counted in int32.
template <class Schedule>
void check_ring(const Tensor& q, const Tensor& k_ring, const Tensor& valid, const Sizes& n, ScalarType dtype,
                int tile_keys) {
  check_tensor(k_ring, "k_ring", {n.slots, n.size, n.heads, kHeadDim}, dtype, q);
  check_tensor(valid, "valid", {1}, ScalarType::Int, q, sizeof(int));
  const int64_t steps = n.heads * (n.rows / Schedule::kRows + 1) * (n.tokens / tile_keys + 2);
  LL_CHECK(steps <= INT32_MAX / 2, "q must have fewer rows for ", n.tokens, " keys of ", n.heads, " heads, got ",
           n.rows);
}

// Scales of int8 keys, which are copied 16 bytes at a time. Returns how many a head has.
inline int64_t check_copied_scales(const Tensor& k_scale, const Sizes& n, const Tensor& like) {
  const int64_t scales = check_key_scales(k_scale, {n.heads}, n.slots, n.size, like);
  check_aligned(k_scale, "k_scale");
  LL_CHECK(scales % 4 == 0, "k_scale must have a multiple of 4 scales a head, got ", scales);
  return scales;
}

// Memory for partial results, none where nothing is split.
template <class Schedule>
struct PartialTensors {
  Tensor out, stats;

  PartialTensors(const Tensor& like, int ctas, bool split_kv)
      : out(torch::stable::new_empty(like, {count(ctas, split_kv), Schedule::kRows, kHeadDim}, ScalarType::Float)),
        stats(torch::stable::new_empty(like, {count(ctas, split_kv), Schedule::kRows, 2}, ScalarType::Float)) {}
  Partials partials() const { return {data<float>(out), data<float2>(stats)}; }

 private:
  static int64_t count(int ctas, bool split_kv) { return split_kv ? Schedule::partials(ctas) : 0; }
};
}  // namespace longlive::attention
