#pragma once
// FlashAttention for Hopper: softmax(q k^T / sqrt(128)) v over the first tokens of a KV cache that is a ring.
// Persistent: a CTA per multiprocessor computes the stream-K schedule from their number, which it reads on the device,
// and does its share.
//
// Warp-specialised: a producer warp loads tiles of keys and values by TMA into the stages of a pipeline; two consumer
// warpgroups of 64 queries each run q k^T of the next tile and p v of this one while they compute this tile's online
// softmax. They are not ordered among themselves: ping-pong by named barriers costs 2 % (docs/attention.md).
//
// Two kinds, told apart by the type of queries and keys: bfloat16, or int8 with a scale for each token of each head.
// Values, p and the result are bfloat16 in both.
#include <cfloat>
#include <numbers>
#include <type_traits>

#include "attention/schedule.h"
#include "common/bf16.cuh"
#include "common/math.cuh"
#include "common/reduce.cuh"
#include "common/shapes.h"
#include "common/sm90/pipeline.cuh"
#include "common/sm90/registers.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"

namespace longlive::attention {
using sm90::Barrier;
using sm90::kConsumers;
using sm90::kWarpgroupWarps;
using sm90::TensorMap;

constexpr int kBoxRow = 128;  // bytes; a head's row of bfloat16 is two of them, one of int8 is one
constexpr int kRows = kTileRows / kConsumers;

// exp(x / sqrt(d)) = exp2(kScale x)
constexpr float kScale = std::numbers::log2e_v<float> * 0.08838834764831845f;

// `stages` hold keys or values, in turn; with `value_stages` they hold keys alone.
template <class T, int tile_keys, int stages, int value_stages = 0>
struct Config {
  using Key = T;
  static constexpr bool kScaled = std::is_same_v<T, int8_t>;
  static constexpr int kTileKeys = tile_keys, kStages = stages, kValueStages = value_stages;
  static constexpr int kKeyBoxes = kHeadDim * sizeof(T) / kBoxRow, kValueBoxes = 2;
  static constexpr int kBoxBytes = kTileKeys * kBoxRow, kQueryBoxBytes = kRows * kBoxRow;
  static constexpr int kKeyBytes = kKeyBoxes * kBoxBytes, kValueBytes = kValueBoxes * kBoxBytes;
  static constexpr int kQueryBytes = kKeyBoxes * kQueryBoxBytes;
  static_assert(kTileKeys % 16 == 0 && kTileKeys <= 256);
  static_assert(kScaled == (kValueStages > 0), "keys and values that share stages are of one size");
};

struct Params {
  bf16* out;              // [rows, heads, 128]
  float* partial_out;     // [partials, kTileRows, 128], not yet divided by row_sum
  float2* partial_stats;  // [partials, kTileRows]: row_max, row_sum
  const int* valid;       // [1]: the keys are the ring's tokens [0, valid)
  int rows, heads, tokens, ctas;
  bool split_kv;
  const float *q_scale = nullptr, *k_scale = nullptr;  // [heads, rows] and [heads, tokens], of int8
};

// What the producer copies from.
struct Maps {
  TensorMap q, k, v;
};

// Where tiles wait for the consumers: keys and values in turn.
template <class C>
struct MixedTiles {
  using Pipeline = sm90::Pipeline<C::kStages>;
  struct State {
    typename Pipeline::State both;
    __device__ auto& keys() { return both; }
    __device__ auto& values() { return both; }
  };

  alignas(1024) uint8_t tile[C::kStages][C::kValueBytes];
  Pipeline pipeline;

  __device__ void init(int consumers) { pipeline.init(consumers); }
  __device__ Pipeline& key_pipeline() { return pipeline; }
  __device__ Pipeline& value_pipeline() { return pipeline; }
  __device__ uint8_t* keys(int stage) { return tile[stage]; }
  __device__ uint8_t* values(int stage) { return tile[stage]; }
};

// Keys with their scales, half as large as values, apart from these.
template <class C>
struct SeparateTiles {
  using KeyPipeline = sm90::Pipeline<C::kStages>;
  using ValuePipeline = sm90::Pipeline<C::kValueStages>;
  struct State {
    typename KeyPipeline::State of_keys;
    typename ValuePipeline::State of_values;
    __device__ auto& keys() { return of_keys; }
    __device__ auto& values() { return of_values; }
  };

  alignas(1024) uint8_t key_tile[C::kStages][C::kKeyBytes];
  alignas(1024) uint8_t value_tile[C::kValueStages][C::kValueBytes];
  struct alignas(128) {
    float of[C::kTileKeys];
  } key_scale[C::kStages];
  KeyPipeline of_keys;
  ValuePipeline of_values;

  __device__ void init(int consumers) { of_keys.init(consumers), of_values.init(consumers); }
  __device__ KeyPipeline& key_pipeline() { return of_keys; }
  __device__ ValuePipeline& value_pipeline() { return of_values; }
  __device__ uint8_t* keys(int stage) { return key_tile[stage]; }
  __device__ uint8_t* values(int stage) { return value_tile[stage]; }
};

template <class C>
struct Shared {
  using Tiles = std::conditional_t<C::kScaled, SeparateTiles<C>, MixedTiles<C>>;

  alignas(1024) uint8_t query[kConsumers][C::kQueryBytes];
  Tiles tiles;
  // What a query belongs to; a consumer has released the one before when it is still storing that one's result.
  WorkTile work[kConsumers][2];
  Barrier query_full[kConsumers], query_empty[kConsumers];
  Barrier raw;  // the values of a short tile have landed; the producer has not cleared the rest of the tile yet
  int keys;     // how many
  Schedule schedule;
};

__device__ inline int keys_of(const Params& p) { return std::clamp(*p.valid, 0, p.tokens); }

template <class C>
__device__ Schedule make_schedule(const Params& p) {
  return {p.heads, p.rows, key_tiles_of(keys_of(p), C::kTileKeys), p.ctas, p.split_kv};
}

// ---------------------------------------------------------------------------------------------------------------------
// The producer: one warp. Its lanes run together; the first one issues the copies.

template <class C>
struct Producer {
  Shared<C>& s;
  const Maps& maps;
  const Params& params;
  const int lane = threadIdx.x % 32;
  typename Shared<C>::Tiles::State state;
  uint32_t raw_phase = 0;

  // Rows of a head, box beside box.
  template <class T>
  static __device__ void load_boxes(uint8_t* to, int box_bytes, const TensorMap& map, Barrier& full, int head,
                                    int row) {
    constexpr int kColumns = kBoxRow / sizeof(T);
#pragma unroll
    for (int i = 0; i < kHeadDim / kColumns; ++i)
      sm90::load_tile(to + i * box_bytes, map, full, head * kHeadDim + i * kColumns, row);
  }

  // Tells the consumers their work, the count-th, and loads its queries.
  __device__ void load_query(const WorkTile& work, int count) {
    for (int i = 0; i < kConsumers; ++i) {
      s.query_empty[i].wait(~count & 1);
      __syncwarp();  // as in Pipeline::acquire
      if (lane == 0) {
        s.work[i][count & 1] = work;
        s.query_full[i].arrive_and_expect(C::kQueryBytes);
        load_boxes<typename C::Key>(s.query[i], C::kQueryBoxBytes, maps.q, s.query_full[i], work.head,
                                    work.row + i * kRows);
      }
    }
  }

  // Of the tile of keys from `row` on: at the end of the ring there are fewer.
  __device__ int scale_bytes(int row) const {
    return std::min(int{C::kTileKeys}, params.tokens - row) * int(sizeof(float));
  }

  // Tokens that are not valid may hold anything: their scores are masked.
  __device__ void load_keys(int tile, int head) {
    auto& at = state.keys();
    s.tiles.key_pipeline().acquire(at);
    if (lane == 0) {
      Barrier& full = s.tiles.key_pipeline().full[at.stage];
      const int row = tile * C::kTileKeys;
      const int scales = C::kScaled ? scale_bytes(row) : 0;
      full.arrive_and_expect(C::kKeyBytes + scales);
      load_boxes<typename C::Key>(s.tiles.keys(at.stage), C::kBoxBytes, maps.k, full, head, row);
      if constexpr (C::kScaled)
        sm90::load_bytes(s.tiles.key_scale[at.stage].of, params.k_scale + int64_t(head) * params.tokens + row, scales,
                         full);
    }
    at.advance();
  }

  // Their values are multiplied by p = 0, which does not remove NaN: they are cleared.
  __device__ void load_values(int tile, int head) {
    auto& at = state.values();
    s.tiles.value_pipeline().acquire(at);
    Barrier& full = s.tiles.value_pipeline().full[at.stage];
    const int row = tile * C::kTileKeys, count = s.keys - row;
    const bool is_short = count < C::kTileKeys;
    if (lane == 0) {
      Barrier& landed = is_short ? s.raw : full;
      landed.arrive_and_expect(C::kValueBytes);
      load_boxes<bf16>(s.tiles.values(at.stage), C::kBoxBytes, maps.v, landed, head, row);
    }
    if (is_short) {
      s.raw.wait(raw_phase);
      raw_phase ^= 1;
      clear_from(s.tiles.values(at.stage), count);
      sm90::fence_proxy_async();
      __syncwarp();
      if (lane == 0) full.arrive();
    }
    at.advance();
  }

  // The swizzle permutes the bytes of a row among themselves, so rows are where they would be without it.
  __device__ void clear_from(uint8_t* values, int row) {
    uint4* tile = reinterpret_cast<uint4*>(values);
    constexpr int kBoxSize = C::kBoxBytes / sizeof(uint4), kRowSize = kBoxRow / sizeof(uint4);
#pragma unroll 1
    for (int i = row * kRowSize + lane; i < kBoxSize; i += 32) tile[i] = tile[kBoxSize + i] = uint4{};
  }

  // There is no more work.
  __device__ void end(int count) {
    for (int i = 0; i < kConsumers; ++i) {
      s.query_empty[i].wait(~count & 1);
      __syncwarp();
      if (lane == 0) {
        s.work[i][count & 1].last = 0;
        s.query_full[i].arrive();
      }
    }
  }

  __device__ void run() {
    Schedule::Cursor at = s.schedule.start(blockIdx.x);
    WorkTile work;
    int count = 0;
#pragma unroll 1
    for (; s.schedule.next(blockIdx.x, at, work); ++count) {
      load_keys(work.first, work.head);
      load_query(work, count);
#pragma unroll 1
      for (int t = work.first; t < work.last; ++t) {
        if (t + 1 < work.last) load_keys(t + 1, work.head);  // q k^T runs one tile ahead of p v
        load_values(t, work.head);
      }
    }
    end(count);
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// A consumer: one warpgroup. wgmma's accumulator layout: a thread holds two rows, 16 warp + lane / 4 and 8 below it; of
// each the columns 8 i + 2 (lane % 4) and the next one, for all i. Element 4 i + 2 r + j: row r, column j of these.

// By what a thread's two rows of scores are multiplied: exp2 of that is p.
struct PlainFactors {
  __device__ float operator[](int) const { return kScale; }
  // A score in units of q k^T.
  __device__ float whole(int, float score) const { return score; }
  static __device__ void exp2_to(float& y, float x) { y = exp2(x); }
};
// int8: scores do not contain the scale of their query yet.
struct ScaledFactors {
  float at[2];

  __device__ explicit ScaledFactors(const float (&q_scale)[2]) {
    // A query of zeros keeps a factor, by which -inf remains what it is.
#pragma unroll
    for (int r = 0; r < 2; ++r) at[r] = q_scale[r] == 0 ? FLT_MIN : q_scale[r] * kScale;
  }
  __device__ float operator[](int r) const { return at[r]; }
  __device__ float whole(int r, float score) const { return score * (at[r] * (1 / kScale)); }
  // The product of the next tile overwrites y as an integer.
  static __device__ void exp2_to(float& y, float x) { reinterpret_cast<int32_t&>(y) = exp2_bits(x); }
};

// The online softmax of a thread's two rows.
template <int kSize, class Factors>
struct OnlineSoftmax {
  const Factors factor;

  // Precision: float32, and no lazy rescaling: row_max is the largest score so far, so that the largest p is 1, which
  // rounding to bfloat16 leaves alone. It starts at a finite value: rows without keys meet no difference of infinities.
  float row_max[2] = {-FLT_MAX, -FLT_MAX};
  float row_sum[2] = {0, 0};  // of this thread's columns

  // Scores become exp2(factor (score - row_max)); earlier results must be multiplied by `rescale`.
  __device__ void update(float (&x)[kSize], float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float a = x[2 * r], b = x[2 * r + 1];  // two chains each, for their latency
#pragma unroll
      for (int i = 4; i < kSize; i += 4) a = fmaxf(a, x[i + 2 * r]), b = fmaxf(b, x[i + 2 * r + 1]);
      const float before = row_max[r];
      row_max[r] = fmaxf(before, quad_reduce(fmaxf(a, b), fmaxf));
      rescale[r] = exp2((before - row_max[r]) * factor[r]);
      const float shift = row_max[r] * factor[r];
      a = b = 0;
#pragma unroll
      for (int i = 0; i < kSize; i += 4) {
        float &y = x[i + 2 * r], &z = x[i + 2 * r + 1];
        Factors::exp2_to(y, fmaf(y, factor[r], -shift));
        Factors::exp2_to(z, fmaf(z, factor[r], -shift));
        a += y, b += z;
      }
      row_sum[r] = fmaf(row_sum[r], rescale[r], a + b);
    }
  }
};

template <class C>
struct Consumer {
  using Key = typename C::Key;
  using Factors = std::conditional_t<C::kScaled, ScaledFactors, PlainFactors>;
  static constexpr int kScores = C::kTileKeys / 2, kOut = kHeadDim / 2;
  using Softmax = OnlineSoftmax<kScores, Factors>;
  using Sums = sm90::Sum<Key>[kScores];

  const Params& params;
  Shared<C>& s;
  const int index;  // of the warpgroup, among the consumers
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kWarpgroupWarps;
  typename Shared<C>::Tiles::State state;
  float scores[kScores], out[kOut];
  uint32_t p[kScores / 2];  // probabilities in bfloat16, not yet divided by row_sum

  // What the product sums: the scores, or, of int8, integers in their registers.
  __device__ Sums& sums() { return reinterpret_cast<Sums&>(scores); }

  // Issues sums = q k^T.
  __device__ void issue_qk(int stage) {
    const uint64_t q = sm90::swizzled_descriptor(s.query[index]), k = sm90::swizzled_descriptor(s.tiles.keys(stage));
    sm90::pin(sums());
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kHeadDim / sm90::kDepth<Key>; ++i) {  // 32 bytes, within the rows of a box
      const int box = i / 4, bytes = i % 4 * 32;
      const uint64_t a = q + (box * C::kQueryBoxBytes + bytes) / 16, b = k + (box * C::kBoxBytes + bytes) / 16;
      i == 0 ? sm90::mma_ss<Key, C::kTileKeys, false>(sums(), a, b) : sm90::mma_ss<Key, C::kTileKeys>(sums(), a, b);
    }
    sm90::mma_commit();
  }

  // Issues out += p v.
  __device__ void issue_pv(int stage) {
    const uint64_t v = sm90::swizzled_descriptor(s.tiles.values(stage), C::kBoxBytes);
    sm90::pin(out);
    sm90::pin(p);
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < C::kTileKeys / 16; ++i) sm90::mma_rs<bf16>(out, p + 4 * i, v + i * 16 * kBoxRow / 16);
    sm90::mma_commit();
  }

  __device__ void wait_qk(bool pv_in_flight) {
    pv_in_flight ? sm90::mma_wait<1>() : sm90::mma_wait<0>();
    sm90::pin(sums());
  }
  __device__ void wait_pv() {
    sm90::mma_wait<0>();
    sm90::pin(out);
    sm90::pin(p);
  }

  // Integers become scores, but for the scale of their query. The keys' stage may then be released.
  __device__ void scale(int stage) {
    if constexpr (C::kScaled) {
      const float2* of_key = reinterpret_cast<const float2*>(s.tiles.key_scale[stage].of) + lane % 4;
#pragma unroll
      for (int i = 0; i < kScores; i += 4) {
        const float2 of = of_key[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[i + j] = float(sums()[i + j]) * (j % 2 ? of.y : of.x);
      }
      __syncwarp();
    }
  }

  // Keys from `count` on are not valid.
  __device__ void mask(int count) {
    if (count >= C::kTileKeys) return;
#pragma unroll
    for (int i = 0; i < kScores; ++i)
      if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= count) scores[i] = -INFINITY;
  }

  __device__ void round_p() {
    // Precision: p is rounded to bfloat16 for p v, not for row_sum.
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) p[i] = pack(scores[2 * i], scores[2 * i + 1]);
  }

  __device__ void rescale_out(const float (&rescale)[2]) {
    if (!__any_sync(0xffffffffu, rescale[0] != 1 || rescale[1] != 1)) return;
#pragma unroll
    for (int i = 0; i < kOut; ++i) out[i] *= rescale[i / 2 % 2];
  }

  __device__ void run() {
#pragma unroll 1
    for (int count = 0;; ++count) {
      s.query_full[index].wait(count & 1);
      const WorkTile& work = s.work[index][count & 1];  // stays there: registers are short
      if (work.last == 0) return;
      Softmax softmax{factors(work)};
      attend(work, softmax);
      for (float& sum : softmax.row_sum) sum = quad_sum(sum);
      work.partial < 0 ? store(work, softmax) : store_partial(work, softmax);
    }
  }

  __device__ Factors factors(const WorkTile& work) const {
    if constexpr (C::kScaled) {
      float q_scale[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = work.row + row_of(r);
        q_scale[r] = row < work.end_row ? params.q_scale[int64_t(work.head) * params.rows + row] : 0;
      }
      return Factors(q_scale);
    } else {
      return {};
    }
  }

  __device__ void attend(const WorkTile& work, Softmax& softmax) {
    const int keys = s.keys;
    float rescale[2];
    s.tiles.key_pipeline().wait(state.keys());
    issue_qk(state.keys().stage);
    wait_qk(false);
    scale(state.keys().stage);
    s.tiles.key_pipeline().release(state.keys().stage, lane);
    state.keys().advance();
    mask(keys - work.first * C::kTileKeys);
    softmax.update(scores, rescale);
#pragma unroll
    for (float& x : out) x = 0;

    int v_stage = -1;  // of the p v in flight
#pragma unroll 1
    for (int t = work.first + 1; t < work.last; ++t) {
      finish_pv(v_stage, rescale);
      const auto k = state.keys();
      state.keys().advance();
      s.tiles.key_pipeline().wait(k);
      issue_qk(k.stage);
      s.tiles.value_pipeline().wait(state.values());
      issue_pv(state.values().stage);
      wait_qk(true);
      scale(k.stage);
      s.tiles.key_pipeline().release(k.stage, lane);
      mask(keys - t * C::kTileKeys);
      softmax.update(scores, rescale);
      v_stage = state.values().stage;
      state.values().advance();
    }
    if (lane == 0) s.query_empty[index].arrive();
    finish_pv(v_stage, rescale);
    s.tiles.value_pipeline().wait(state.values());
    issue_pv(state.values().stage);
    wait_pv();
    s.tiles.value_pipeline().release(state.values().stage, lane);
    state.values().advance();
  }

  // Ends the p v in flight, if any, and prepares the next one: out relative to the new row_max, and p.
  __device__ void finish_pv(int v_stage, const float (&rescale)[2]) {
    wait_pv();
    if (v_stage >= 0) s.tiles.value_pipeline().release(v_stage, lane);
    rescale_out(rescale);
    round_p();
  }

  __device__ int row_of(int r) const { return index * kRows + warp * 16 + lane / 4 + 8 * r; }  // within the output tile

  __device__ void store(const WorkTile& work, const Softmax& softmax) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = work.row + row_of(r);
      if (row >= work.end_row) continue;
      const float scale = softmax.row_sum[r] == 0 ? 0 : 1 / softmax.row_sum[r];  // no key at all: zeros
      bf16* to = params.out + (int64_t(row) * params.heads + work.head) * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kOut; i += 4)
        *reinterpret_cast<uint32_t*>(to + 2 * i) = pack(out[i + 2 * r] * scale, out[i + 2 * r + 1] * scale);
    }
  }

  __device__ void store_partial(const WorkTile& work, const Softmax& softmax) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = int64_t(work.partial) * kTileRows + row_of(r);
      if (lane % 4 == 0) params.partial_stats[row] = {softmax.factor.whole(r, softmax.row_max[r]), softmax.row_sum[r]};
      float* to = params.partial_out + row * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kOut; i += 4) *reinterpret_cast<float2*>(to + 2 * i) = {out[i + 2 * r], out[i + 2 * r + 1]};
    }
  }
};

template <class C>
__global__ void __launch_bounds__(sm90::kThreads, 1)
    ring_attention_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Params p) {
  Shared<C>& s = sm90::shared_memory<Shared<C>>();
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / sm90::kWarpgroup, 0);
  if (threadIdx.x == 0) {
    if (sm90::shared_address(&s) % 1024) __trap();  // the swizzle is of addresses
    for (int i = 0; i < kConsumers; ++i) s.query_full[i].init(1), s.query_empty[i].init(kWarpgroupWarps);
    s.tiles.init(kConsumers * kWarpgroupWarps);
    s.raw.init(1);
    sm90::fence_barrier_init();
    sm90::prefetch(maps.q), sm90::prefetch(maps.k), sm90::prefetch(maps.v);
    s.keys = keys_of(p);
    s.schedule = make_schedule<C>(p);
  }
  __syncthreads();
  if (warpgroup == 0) {
    sm90::reg_dealloc<sm90::kProducerRegisters>();
    if (threadIdx.x < 32) Producer<C>{s, maps, p}.run();
  } else {
    sm90::reg_alloc<sm90::kConsumerRegisters>();
    Consumer<C>{p, s, warpgroup - 1}.run();
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Combines the partial results of the output tiles that are split: a warp has a row.

constexpr int kCombineThreads = 128, kCombineRows = kCombineThreads / 32;

template <class C>
__global__ void __launch_bounds__(kCombineThreads) ring_attention_combine_kernel(const __grid_constant__ Params p) {
  static __shared__ Schedule schedule;
  if (threadIdx.x == 0) schedule = make_schedule<C>(p);
  __syncthreads();
  const int n = blockIdx.x / (kTileRows / kCombineRows), lane = threadIdx.x % 32;
  const int row = blockIdx.x % (kTileRows / kCombineRows) * kCombineRows + threadIdx.x / 32;  // within the output tile
  const Schedule::Split split = schedule.split(n);
  if (split.first == split.last || split.tile.row + row >= split.tile.end_row) return;
  // Precision: float32, in the order of the keys: the result is the same every time.
  float row_max = -FLT_MAX, row_sum = 0;
  float4 out{};
  for (int cta = split.first; cta <= split.last; ++cta) {
    const int64_t at = int64_t(schedule.partial_of(cta, split)) * kTileRows + row;
    const float2 stats = p.partial_stats[at];
    const float4 x = reinterpret_cast<const float4*>(p.partial_out + at * kHeadDim)[lane];
    const float before = row_max;
    row_max = fmaxf(before, stats.x);
    const float rescale = exp2((before - row_max) * kScale), scale = exp2((stats.x - row_max) * kScale);
    row_sum = fmaf(row_sum, rescale, stats.y * scale);
    out.x = fmaf(out.x, rescale, x.x * scale);
    out.y = fmaf(out.y, rescale, x.y * scale);
    out.z = fmaf(out.z, rescale, x.z * scale);
    out.w = fmaf(out.w, rescale, x.w * scale);
  }
  const float scale = row_sum == 0 ? 0 : 1 / row_sum;
  bf16* to = p.out + (int64_t(split.tile.row + row) * p.heads + split.tile.head) * kHeadDim;
  reinterpret_cast<uint2*>(to)[lane] = {pack(out.x * scale, out.y * scale), pack(out.z * scale, out.w * scale)};
}

// Attention, then, where output tiles are split, the combination.
template <class C>
cudaError_t launch(const Maps& maps, const Params& p, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<C>);
  const auto kernel = ring_attention_kernel<C>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const cudaLaunchConfig_t attend{
      .gridDim = p.ctas, .blockDim = sm90::kThreads, .dynamicSmemBytes = kBytes, .stream = stream};
  error = cudaLaunchKernelEx(&attend, kernel, maps, p);
  const int tiles = p.split_kv ? Schedule::split_tiles(p.heads, p.rows, p.ctas) : 0;
  if (error != cudaSuccess || tiles == 0) return error;
  const cudaLaunchConfig_t combine{.gridDim = tiles * (kTileRows / kCombineRows),
                                   .blockDim = kCombineThreads,
                                   .dynamicSmemBytes = 0,
                                   .stream = stream};
  return cudaLaunchKernelEx(&combine, ring_attention_combine_kernel<C>, p);
}
}  // namespace longlive::attention
