// rotate_sinks: the un-rotated keys of the sink frames, of every layer, rotated into the ring, as they are or as int8
// with their scales. A warp has a token.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "common/heads.cuh"
#include "common/launch.h"
#include "common/rope.cuh"
#include "common/vec.cuh"

namespace longlive {
namespace {
// Where keys go: a layer's token of the ring.
template <class T>
struct PlainRing {
  T* k_ring;  // [layers, ring_tokens, size]
  __device__ Heads<T> at(int64_t layer, int64_t token, int ring_tokens, int size) const {
    return {k_ring + (layer * ring_tokens + token) * size};
  }
};
struct Int8Ring {
  int8_t* k_ring;
  float* k_scale;         // [layers, heads, ring_tokens]
  const float* k_offset;  // [layers, size]
  __device__ HeadsInt8 at(int64_t layer, int64_t token, int ring_tokens, int size) const {
    return {k_ring + (layer * ring_tokens + token) * size, k_scale + layer * (size / kHeadDim) * ring_tokens + token,
            ring_tokens, k_offset + layer * size};
  }
};

template <class T, class Ring>
struct Params {
  const T* k_sink;  // [layers, sinks, tokens, size]
  Rope rope;
  Ring out;
  int rows, sinks, ring, tokens, size;  // rows = layers * sinks * tokens
};

template <class T, class Ring>
__global__ void __launch_bounds__(kThreads) rotate_sinks_kernel(const Params<T, Ring> p) {
  using V = Vec<T>;
  using R = Row<T>;
  const int row = row_of_warp();
  if (row >= p.rows) return;
  const R z(p.k_sink + int64_t(row) * p.size, p.size);
  const int token = row % p.tokens, frame = row / p.tokens % p.sinks, layer = row / p.tokens / p.sinks;
  const auto out = p.out.at(layer, frame * p.tokens + token, p.ring * p.tokens, p.size);

  static_assert(R::kStride % kHeadDim == 0);  // a lane's vectors lie whole heads apart, so they share rotations
  const Rotations<V::kSize> rope(p.rope, frame, token, z.first);
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i) {
    if (!z.has(i)) break;
    float key[V::kSize];  // Precision: float32, rounded once by the store
#pragma unroll
    for (int j = 0; j < V::kSize; ++j) key[j] = z.vector[i][j];
    rope.apply(key);
    out.store(z.offset(i), key);
  }
}

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
  LL_CHECK(heads > 0 && size <= kMaxSize, "k_sink must have 1 to ", kMaxSize / kHeadDim, " heads, got ", heads);
  LL_CHECK(ring >= sinks, "k_ring must have at least k_sink's ", sinks, " slots, got ", ring);
  check_tensor(k_sink, "k_sink", {layers, sinks, tokens, heads, kHeadDim}, k_sink.scalar_type(), k_sink);
  check_tensor(rope_time, "rope_time", {sinks, time_pairs, 2}, ScalarType::Float, k_sink, sizeof(float2));
  check_tensor(rope_space, "rope_space", {tokens, kPairs - time_pairs, 2}, ScalarType::Float, k_sink, sizeof(float2));
  check_tensor(k_ring, "k_ring", {layers, ring, tokens, heads, kHeadDim}, ring_dtype, k_sink);
  return {layers, sinks, ring, tokens, heads, size, time_pairs};
}

// out_of(T{}) says where keys go.
template <class F>
void launch(const Tensor& k_sink, const Tensor& rope_time, const Tensor& rope_space, const Sizes& n, F out_of) {
  const int64_t rows = n.layers * n.sinks * n.tokens;
  if (rows == 0) return;
  torch::stable::accelerator::DeviceGuard guard(k_sink.get_device_index());
  launch_as(k_sink, [&]<class T>(T, cudaStream_t stream) {
    using Ring = decltype(out_of(T{}));
    const Params<T, Ring> p{data<T>(k_sink), {data<float2>(rope_time), data<float2>(rope_space), int(n.time_pairs)},
                            out_of(T{}),     int(rows),
                            int(n.sinks),    int(n.ring),
                            int(n.tokens),   int(n.size)};
    rotate_sinks_kernel<T, Ring><<<blocks_for_rows(rows), kThreads, 0, stream>>>(p);
  });
}

void rotate_sinks(const Tensor& k_sink, const Tensor& rope_time, const Tensor& rope_space, const Tensor& k_ring) {
  const Sizes n = check(k_sink, rope_time, rope_space, k_ring, k_sink.scalar_type());
  launch(k_sink, rope_time, rope_space, n, [&]<class T>(T) { return PlainRing<T>{data<T>(k_ring)}; });
}

void rotate_sinks_int8(const Tensor& k_sink, const Tensor& rope_time, const Tensor& rope_space, const Tensor& k_offset,
                       const Tensor& k_ring, const Tensor& k_scale) {
  const Sizes n = check(k_sink, rope_time, rope_space, k_ring, ScalarType::Char);
  LL_CHECK(n.heads * n.ring * n.tokens <= INT32_MAX, "k_scale must have fewer elements a layer, got ",
           n.heads * n.ring * n.tokens);
  check_whole_warps(k_sink, "k_sink", n.heads);
  check_tensor(k_offset, "k_offset", {n.layers, n.heads, kHeadDim}, ScalarType::Float, k_sink);
  check_tensor(k_scale, "k_scale", {n.layers, n.heads, n.ring * n.tokens}, ScalarType::Float, k_sink, sizeof(float));
  launch(k_sink, rope_time, rope_space, n,
         [&]<class T>(T) { return Int8Ring{data<int8_t>(k_ring), data<float>(k_scale), data<float>(k_offset)}; });
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("rotate_sinks", TORCH_BOX(&longlive::rotate_sinks));
  m.impl("rotate_sinks_int8", TORCH_BOX(&longlive::rotate_sinks_int8));
}
