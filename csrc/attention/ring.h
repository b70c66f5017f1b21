#pragma once
// What the kernels of attention over the ring share at the edge to torch: checks, memory, parameters.
#include <torch/csrc/stable/ops.h>

#include "attention/ring.cuh"
#include "common/check.h"
#include "common/launch.h"

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

// The result, memory for partial results (none where nothing is split), and the parameters that all kinds have.
template <class Params>
struct Call {
  Tensor out, partial_out, partial_stats;
  Params params{};

  Call(const Tensor& q, const Tensor& valid, const Sizes& n)
      : Call(q, valid, n, processors(q.get_device_index()), n.tokens >= kSplitFrom) {}

 private:
  using Schedule = typename Params::Schedule;

  Call(const Tensor& q, const Tensor& valid, const Sizes& n, int ctas, bool split_kv)
      : out(torch::stable::new_empty(q, {n.rows, n.heads, kHeadDim}, ScalarType::BFloat16)),
        partial_out(partials(q, ctas, split_kv, kHeadDim)),
        partial_stats(partials(q, ctas, split_kv, 2)) {
    params.out = data<bf16>(out);
    params.partials = {data<float>(partial_out), data<float2>(partial_stats)};
    params.valid = data<const int>(valid);
    params.rows = int(n.rows), params.heads = int(n.heads), params.tokens = int(n.tokens);
    params.ctas = ctas, params.split_kv = split_kv;
  }
  static Tensor partials(const Tensor& like, int ctas, bool split_kv, int64_t columns) {
    return torch::stable::new_empty(like, {split_kv ? Schedule::partials(ctas) : 0, Schedule::kRows, columns},
                                    ScalarType::Float);
  }
};
}  // namespace longlive::attention
