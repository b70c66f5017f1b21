// rotate_sinks: the un-rotated keys of the sink frames, of every layer, rotated into the ring. A warp has a token.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "common/launch.h"
#include "common/rope.cuh"
#include "common/vec.cuh"

namespace longlive {
namespace {
template <class T>
struct Params {
  const T* k_sink;  // [layers, sinks, tokens, size]
  Rope rope;
  T* k_ring;                            // [layers, ring, tokens, size]
  int rows, sinks, ring, tokens, size;  // rows = layers * sinks * tokens
};

template <class T>
__global__ void __launch_bounds__(kThreads) rotate_sinks_kernel(const Params<T> p) {
  using V = Vec<T>;
  using R = Row<T>;
  const int row = row_of_warp();
  if (row >= p.rows) return;
  const R z(p.k_sink + int64_t(row) * p.size, p.size);
  const int token = row % p.tokens, frame = row / p.tokens % p.sinks, layer = row / p.tokens / p.sinks;
  T* out = p.k_ring + ((int64_t(layer) * p.ring + frame) * p.tokens + token) * p.size;

  static_assert(R::kStride % kHeadDim == 0);  // a lane's vectors lie whole heads apart, so they share rotations
  const Rotations<V::kSize> rope(p.rope, frame, token, z.first);
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i) {
    if (!z.has(i)) break;
    float key[V::kSize];  // Precision: float32, rounded once by the store
#pragma unroll
    for (int j = 0; j < V::kSize; ++j) key[j] = z.vector[i][j];
    rope.apply(key);
    V::of(key).store(out + z.offset(i));
  }
}

void rotate_sinks(const Tensor& k_sink, const Tensor& rope_time, const Tensor& rope_space, const Tensor& k_ring) {
  vector_size(k_sink, "k_sink");
  LL_CHECK(k_sink.dim() == 5, "k_sink must have 5 dimensions, got ", k_sink.dim());
  LL_CHECK(k_ring.dim() == 5, "k_ring must have 5 dimensions, got ", k_ring.dim());
  LL_CHECK(rope_time.dim() == 3, "rope_time must have 3 dimensions, got ", rope_time.dim());
  const int64_t layers = k_sink.size(0), sinks = k_sink.size(1), tokens = k_sink.size(2), heads = k_sink.size(3);
  const int64_t size = heads * kHeadDim, ring = k_ring.size(1), time_pairs = rope_time.size(1);
  LL_CHECK(k_sink.size(4) == kHeadDim, "k_sink must have a last dimension of ", kHeadDim, ", got ", k_sink.size(4));
  LL_CHECK(heads > 0 && size <= kMaxSize, "k_sink must have 1 to ", kMaxSize / kHeadDim, " heads, got ", heads);
  LL_CHECK(ring >= sinks, "k_ring must have at least k_sink's ", sinks, " slots, got ", ring);
  const ScalarType dtype = k_sink.scalar_type();
  check_tensor(k_sink, "k_sink", {layers, sinks, tokens, heads, kHeadDim}, dtype, k_sink);
  check_tensor(rope_time, "rope_time", {sinks, time_pairs, 2}, ScalarType::Float, k_sink, sizeof(float2));
  check_tensor(rope_space, "rope_space", {tokens, kPairs - time_pairs, 2}, ScalarType::Float, k_sink, sizeof(float2));
  check_tensor(k_ring, "k_ring", {layers, ring, tokens, heads, kHeadDim}, dtype, k_sink);
  const int64_t rows = layers * sinks * tokens;
  if (rows == 0) return;
  torch::stable::accelerator::DeviceGuard guard(k_sink.get_device_index());
  launch_as(k_sink, [&]<class T>(T, cudaStream_t stream) {
    const Params<T> p{data<T>(k_sink), {data<float2>(rope_time), data<float2>(rope_space), int(time_pairs)},
                      data<T>(k_ring), int(rows),
                      int(sinks),      int(ring),
                      int(tokens),     int(size)};
    rotate_sinks_kernel<T><<<blocks_for_rows(rows), kThreads, 0, stream>>>(p);
  });
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("rotate_sinks", TORCH_BOX(&longlive::rotate_sinks)); }
