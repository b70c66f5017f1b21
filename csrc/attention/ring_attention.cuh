#pragma once
// softmax(q k^T / sqrt(128)) v over runs of a ring of keys, for Hopper: one CTA to a multiprocessor, each with its
// share of a schedule that all work out from the runs, which are read on the device.
//
// A warp feeds tiles of keys and values through a ring of buffers in shared memory; two warpgroups of 64 queries each
// consume them. Each keeps the tensor cores busy with q k^T of the next tile and p v of this one while it computes its
// softmax. They are left to find their own rhythm: taking turns by barriers costs 2 % (docs/attention.md).
#include <cuda_bf16.h>

#include <cfloat>
#include <type_traits>

#include "attention/schedule.h"
#include "common/math.cuh"
#include "common/sm90/barrier.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"

namespace longlive::attention {
using sm90::Barrier;
using bf16 = __nv_bfloat16;

constexpr int kHeadDim = 128, kHalf = 64;  // a row of a head is two boxes of the copy engine
constexpr int kWarpgroup = 128, kConsumers = 2, kRows = kTileRows / kConsumers;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
// 65536 registers, 168 for each of 384 threads at the start: the feeding warpgroup hands its own to the others.
constexpr int kFeedRegisters = 24, kConsumeRegisters = 240;

// exp(x / sqrt(d)) = exp2(kScale x)
constexpr float kScale = 1.4426950408889634f * 0.08838834764831845f;

template <int tile_keys, int stages>
struct Config {
  static constexpr int kTileKeys = tile_keys, kStages = stages;
  static constexpr int kHalfTileBytes = kTileKeys * kHalf * 2, kTileBytes = 2 * kHalfTileBytes;
  static constexpr int kHalfQueryBytes = kRows * kHalf * 2, kQueryBytes = 2 * kHalfQueryBytes;
  static_assert(kTileKeys % 16 == 0 && kTileKeys <= 256);
};

struct Params {
  bf16* out;           // [rows, heads, 128]
  float* part_out;     // [parts, kTileRows, 128], not yet divided by their sums
  float2* part_stats;  // [parts, kTileRows]: the base, the sum of exponentials relative to it
  const int* ranges;   // [2, 2]
  int rows, heads, tokens, ctas;
  bool cut;
};

template <class C>
struct Shared {
  alignas(1024) uint8_t query[kConsumers][C::kQueryBytes];
  alignas(1024) uint8_t tile[C::kStages][C::kTileBytes];
  Barrier query_full[kConsumers], query_empty[kConsumers], full[C::kStages], empty[C::kStages], raw;
  KeyTiles<C::kTileKeys> keys;
  Schedule schedule;
};

// A place in the ring of buffers, and the parity of the phase in which it is filled.
template <class C>
struct Place {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == C::kStages) stage = 0, parity ^= 1;
  }
};

template <class C>
__device__ Schedule make_schedule(const Params& p, KeyTiles<C::kTileKeys>& keys) {
  keys = {p.ranges, p.tokens};
  return {p.heads, p.rows, keys.count(), p.ctas, p.cut};
}

// ---------------------------------------------------------------------------------------------------------------------
// Feeding: one warp. Its lanes run together; the first one talks to the copy engine.

template <class C>
struct Feeder {
  Shared<C>& s;
  const CUtensorMap &q, &k, &v;
  const int lane = threadIdx.x % 32;
  Place<C> place;
  uint32_t raw_parity = 0;

  __device__ void load_query(const Work& work, int count) {
    for (int i = 0; i < kConsumers; ++i) {
      s.query_empty[i].wait(~count & 1);
      __syncwarp();  // the first lane must not run ahead: a barrier that is a phase further looks like one not yet there
      if (lane == 0) {
        s.query_full[i].arrive_and_expect(C::kQueryBytes);
        for (int half = 0; half < 2; ++half)
          sm90::load_box(s.query[i] + half * C::kHalfQueryBytes, q, work.row + i * kRows,
                         work.head * kHeadDim + half * kHalf, s.query_full[i]);
      }
    }
  }

  __device__ void load_tile(const CUtensorMap& map, int row, int head, Barrier& landed) {
    if (lane == 0) {
      landed.arrive_and_expect(C::kTileBytes);
      for (int half = 0; half < 2; ++half)
        sm90::load_box(s.tile[place.stage] + half * C::kHalfTileBytes, map, row, head * kHeadDim + half * kHalf,
                       landed);
    }
  }

  // Keys that are not meant may be anything: their scores are overwritten.
  __device__ void load_keys(const KeyTile& tile, int head) {
    s.empty[place.stage].wait(place.parity ^ 1);
    __syncwarp();
    load_tile(k, tile.row, head, s.full[place.stage]);
    place.advance();
  }

  // Values that are not meant would be multiplied by zero, which does not remove NaN: they are cleared.
  __device__ void load_values(const KeyTile& tile, int head) {
    s.empty[place.stage].wait(place.parity ^ 1);
    __syncwarp();
    if (tile.count == C::kTileKeys) {
      load_tile(v, tile.row, head, s.full[place.stage]);
    } else {
      load_tile(v, tile.row, head, s.raw);
      s.raw.wait(raw_parity);
      raw_parity ^= 1;
      clear_from(tile.count);
      sm90::fence_proxy_async();
      __syncwarp();
      if (lane == 0) s.full[place.stage].arrive();
    }
    place.advance();
  }

  // The swizzle permutes the bytes of a row among themselves, so rows are where they would be without it.
  __device__ void clear_from(int row) {
    uint4* tile = reinterpret_cast<uint4*>(s.tile[place.stage]);
    constexpr int kHalfSize = C::kHalfTileBytes / sizeof(uint4), kRowSize = kHalf * 2 / sizeof(uint4);
#pragma unroll 1
    for (int i = row * kRowSize + lane; i < kHalfSize; i += 32) tile[i] = tile[kHalfSize + i] = uint4{};
  }

  __device__ void run() {
    Schedule::Cursor at = s.schedule.start(blockIdx.x);
    Work work;
#pragma unroll 1
    for (int count = 0; s.schedule.next(blockIdx.x, at, work); ++count) {
      load_keys(s.keys[work.first], work.head);
      load_query(work, count);
#pragma unroll 1
      for (int t = work.first; t < work.last; ++t) {
        if (t + 1 < work.last) load_keys(s.keys[t + 1], work.head);  // scores run one tile ahead
        load_values(s.keys[t], work.head);
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Consuming: a warpgroup. A thread holds, of each of its two rows, 16 warp + lane / 4 and 8 below it, the columns
// 8 i + 2 (lane % 4) and the next one, for all i: element 4 i + 2 r + j of its sums is row r, column j of these.

// Over the four lanes that share a row.
template <class F>
__device__ float over_row(float x, F f) {
  x = f(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return f(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// The softmax of a thread's two rows so far.
template <int kSize>
struct Softmax {
  // Precision: scores and sums are float32, relative to the largest score so far: where one weight outdoes all others
  // it is 1 then, which rounding to bfloat16 leaves alone. The base starts at a finite value, so that rows without keys
  // meet no difference of infinities.
  float base[2] = {-FLT_MAX, -FLT_MAX};
  float sum[2] = {0, 0};  // of this thread's columns

  // Scores become exponentials relative to the base; `shrink` is what earlier results lose where it rises.
  __device__ void update(float (&x)[kSize], float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float a = x[2 * r], b = x[2 * r + 1];  // two chains each, for their latency
#pragma unroll
      for (int i = 4; i < kSize; i += 4) a = fmaxf(a, x[i + 2 * r]), b = fmaxf(b, x[i + 2 * r + 1]);
      const float before = base[r];
      base[r] = fmaxf(before, over_row(fmaxf(a, b), fmaxf));
      shrink[r] = exp2((before - base[r]) * kScale);
      const float shift = base[r] * kScale;
      a = b = 0;
#pragma unroll
      for (int i = 0; i < kSize; i += 4) {
        float &y = x[i + 2 * r], &z = x[i + 2 * r + 1];
        y = exp2(fmaf(y, kScale, -shift));
        z = exp2(fmaf(z, kScale, -shift));
        a += y, b += z;
      }
      sum[r] = fmaf(sum[r], shrink[r], a + b);
    }
  }
};

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

template <class C>
struct Consumer {
  static constexpr int kScores = C::kTileKeys / 2, kOut = kHeadDim / 2;

  const Params& p;
  Shared<C>& s;
  const int index;  // of the warpgroup, among the consumers
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  Place<C> place;
  float scores[kScores], out[kOut];
  uint32_t weights[kScores / 2];  // exponentials in bfloat16, as the product with the values reads them

  __device__ void release(int stage) {
    if (lane == 0) s.empty[stage].arrive();
  }

  // scores = q k^T, under way
  __device__ void start_scores(int stage) {
    const uint64_t q = sm90::matrix_descriptor(s.query[index], 0), k = sm90::matrix_descriptor(s.tile[stage], 0);
    sm90::pin(scores);
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {  // 16 columns are 32 bytes, within the rows of either half
      const int half = i / 4, bytes = i % 4 * 32;
      const uint64_t a = q + (half * C::kHalfQueryBytes + bytes) / 16, b = k + (half * C::kHalfTileBytes + bytes) / 16;
      i == 0 ? sm90::mma_ss<false>(scores, a, b) : sm90::mma_ss<true>(scores, a, b);
    }
    sm90::mma_commit();
  }

  // out += weights v, under way
  __device__ void start_out(int stage) {
    const uint64_t v = sm90::matrix_descriptor(s.tile[stage], C::kHalfTileBytes);
    sm90::pin(out);
    sm90::pin(weights);
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < C::kTileKeys / 16; ++i) sm90::mma_rs(out, weights + 4 * i, v + i * 16 * kHalf * 2 / 16);
    sm90::mma_commit();
  }

  __device__ void await_scores(bool out_is_under_way) {
    out_is_under_way ? sm90::mma_wait<1>() : sm90::mma_wait<0>();
    sm90::pin(scores);
  }
  __device__ void await_out() {
    sm90::mma_wait<0>();
    sm90::pin(out);
    sm90::pin(weights);
  }

  // Scores of keys from `count` on are of no key.
  __device__ void mask(int count) {
#pragma unroll
    for (int i = 0; i < kScores; ++i)
      if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= count) scores[i] = -INFINITY;
  }

  __device__ void pack_weights() {
    // Precision: exponentials are rounded to bfloat16 for the product with the values, not for their sum.
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) weights[i] = pack(scores[2 * i], scores[2 * i + 1]);
  }

  __device__ void shrink_out(const float (&by)[2]) {
    if (!__any_sync(0xffffffffu, by[0] != 1 || by[1] != 1)) return;
#pragma unroll
    for (int i = 0; i < kOut; ++i) out[i] *= by[i / 2 % 2];
  }

  __device__ void run() {
    Schedule::Cursor at = s.schedule.start(blockIdx.x);
    Work work;
#pragma unroll 1
    for (int count = 0; s.schedule.next(blockIdx.x, at, work); ++count) {
      s.query_full[index].wait(count & 1);
      Softmax<kScores> softmax;
      attend(work, softmax);
      for (float& sum : softmax.sum) sum = over_row(sum, [](float a, float b) { return a + b; });
      work.part < 0 ? store(work, softmax) : store_part(work, softmax);
    }
  }

  __device__ void attend(const Work& work, Softmax<kScores>& softmax) {
    const KeyTiles<C::kTileKeys>& keys = s.keys;
    const int end_0 = keys.tiles[0] - 1, end_1 = keys.count() - 1;  // the tiles that may be short
    float shrink[2];
    s.full[place.stage].wait(place.parity);
    start_scores(place.stage);
    await_scores(false);
    release(place.stage);
    place.advance();
    if (work.first == end_0 || work.first == end_1) mask(keys[work.first].count);
    softmax.update(scores, shrink);
#pragma unroll
    for (float& x : out) x = 0;

    int values = -1;  // the buffer of the values that are in use
#pragma unroll 1
    for (int t = work.first + 1; t < work.last; ++t) {
      finish_out(values, shrink);
      const Place<C> k = place;
      place.advance();
      s.full[k.stage].wait(k.parity);
      start_scores(k.stage);
      s.full[place.stage].wait(place.parity);
      start_out(place.stage);
      await_scores(true);
      release(k.stage);
      if (t == end_0 || t == end_1) mask(keys[t].count);
      softmax.update(scores, shrink);
      values = place.stage;
      place.advance();
    }
    if (lane == 0) s.query_empty[index].arrive();
    finish_out(values, shrink);
    s.full[place.stage].wait(place.parity);
    start_out(place.stage);
    await_out();
    release(place.stage);
    place.advance();
  }

  // The exponentials at hand become the weights of the next product.
  __device__ void finish_out(int values, const float (&shrink)[2]) {
    await_out();
    if (values >= 0) release(values);
    shrink_out(shrink);
    pack_weights();
  }

  __device__ int row_of(int r) const { return index * kRows + warp * 16 + lane / 4 + 8 * r; }  // within the item

  __device__ void store(const Work& work, const Softmax<kScores>& softmax) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = work.row + row_of(r);
      if (row >= work.end_row) continue;
      const float scale = softmax.sum[r] == 0 ? 0 : 1 / softmax.sum[r];  // no key at all: zeros
      bf16* to = p.out + (int64_t(row) * p.heads + work.head) * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kOut; i += 4)
        *reinterpret_cast<uint32_t*>(to + 2 * i) = pack(out[i + 2 * r] * scale, out[i + 2 * r + 1] * scale);
    }
  }

  __device__ void store_part(const Work& work, const Softmax<kScores>& softmax) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = int64_t(work.part) * kTileRows + row_of(r);
      if (lane % 4 == 0) p.part_stats[row] = {softmax.base[r], softmax.sum[r]};
      float* to = p.part_out + row * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kOut; i += 4)
        *reinterpret_cast<float2*>(to + 2 * i) = {out[i + 2 * r], out[i + 2 * r + 1]};
    }
  }
};

template <class C>
__global__ void __launch_bounds__(kThreads, 1)
    ring_attention_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                          const __grid_constant__ CUtensorMap v, const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared<C>& s = *reinterpret_cast<Shared<C>*>(memory);
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);
  if (threadIdx.x == 0) {
    if (sm90::shared_address(&s) % 1024) __trap();  // the swizzle is of addresses
    for (int i = 0; i < kConsumers; ++i) s.query_full[i].init(1), s.query_empty[i].init(kWarpgroup / 32);
    for (int i = 0; i < C::kStages; ++i) s.full[i].init(1), s.empty[i].init(kConsumers * kWarpgroup / 32);
    s.raw.init(1);
    sm90::fence_barrier_init();
    sm90::prefetch(q), sm90::prefetch(k), sm90::prefetch(v);
    s.schedule = make_schedule<C>(p, s.keys);
  }
  __syncthreads();
  if (warpgroup == 0) {
    sm90::registers_give<kFeedRegisters>();
    if (threadIdx.x < 32) Feeder<C>{s, q, k, v}.run();
  } else {
    sm90::registers_take<kConsumeRegisters>();
    Consumer<C>{p, s, warpgroup - 1}.run();
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Merging the partial results of the items that were cut: a warp has a row.

constexpr int kMergeThreads = 128, kMergeRows = kMergeThreads / 32;

template <class C>
__global__ void __launch_bounds__(kMergeThreads) ring_attention_merge_kernel(const __grid_constant__ Params p) {
  static __shared__ KeyTiles<C::kTileKeys> keys;
  static __shared__ Schedule schedule;
  if (threadIdx.x == 0) schedule = make_schedule<C>(p, keys);
  __syncthreads();
  const int n = blockIdx.x / (kTileRows / kMergeRows), lane = threadIdx.x % 32;
  const int row = blockIdx.x % (kTileRows / kMergeRows) * kMergeRows + threadIdx.x / 32;  // within the item
  const Schedule::Parts parts = schedule.parts_of(n);
  if (parts.first == parts.last || parts.item.row + row >= parts.item.end_row) return;
  // Precision: float32, in the order of the keys: the result is the same every time.
  float largest = -FLT_MAX, sum = 0;
  float4 total{};
  for (int cta = parts.first; cta <= parts.last; ++cta) {
    const int64_t at = int64_t(schedule.part_of(cta, parts)) * kTileRows + row;
    const float2 stats = p.part_stats[at];
    const float4 x = reinterpret_cast<const float4*>(p.part_out + at * kHeadDim)[lane];
    const float before = largest;
    largest = fmaxf(before, stats.x);
    const float shrink = exp2((before - largest) * kScale), scale = exp2((stats.x - largest) * kScale);
    sum = fmaf(sum, shrink, stats.y * scale);
    total.x = fmaf(total.x, shrink, x.x * scale);
    total.y = fmaf(total.y, shrink, x.y * scale);
    total.z = fmaf(total.z, shrink, x.z * scale);
    total.w = fmaf(total.w, shrink, x.w * scale);
  }
  const float scale = sum == 0 ? 0 : 1 / sum;
  bf16* to = p.out + (int64_t(parts.item.row + row) * p.heads + parts.item.head) * kHeadDim;
  reinterpret_cast<uint2*>(to)[lane] = {pack(total.x * scale, total.y * scale), pack(total.z * scale, total.w * scale)};
}

// Attention, then, where items are cut, the merge.
template <class C>
cudaError_t launch(const CUtensorMap& q, const CUtensorMap& k, const CUtensorMap& v, const Params& p,
                   cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<C>);
  const auto kernel = ring_attention_kernel<C>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const cudaLaunchConfig_t attend{
      .gridDim = p.ctas, .blockDim = kThreads, .dynamicSmemBytes = kBytes, .stream = stream};
  error = cudaLaunchKernelEx(&attend, kernel, q, k, v, p);
  const int cut = p.cut ? Schedule::pool_items(p.heads, p.rows, p.ctas) : 0;
  if (error != cudaSuccess || cut == 0) return error;
  const cudaLaunchConfig_t merge{
      .gridDim = cut * (kTileRows / kMergeRows), .blockDim = kMergeThreads, .dynamicSmemBytes = 0, .stream = stream};
  return cudaLaunchKernelEx(&merge, ring_attention_merge_kernel<C>, p);
}
}  // namespace longlive::attention
