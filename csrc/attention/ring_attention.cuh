#pragma once
// FlashAttention for Hopper: softmax(q k^T / sqrt(128)) v over the first tokens of a KV cache that is a ring.
// Persistent: a CTA per multiprocessor computes the stream-K schedule from their number, which it reads on the device,
// and does its share.
//
// Warp-specialised: a producer warp loads tiles of keys and values by TMA into the stages of a pipeline; two consumer
// warpgroups of 64 queries each run q k^T of the next tile and p v of this one while they compute this tile's online
// softmax. They are not ordered among themselves: ping-pong by named barriers costs 2 % (docs/attention.md).
//
// Two kinds, told apart by the type of queries and keys: bfloat16, or int8 with a scale for each query and for each run
// of kKeyRun keys of a head. Values, p and the result are bfloat16 in both.
//
// The int8 kind has no running maximum (ShiftedSoftmax). It works in two rounds: first on all work tiles, each with the
// shift that its first tile of keys gives; then again on those whose sums that shift let grow too large (Again), with a
// shift that follows the maximum. ring_attention_fp8.cuh has p and values in 8 bits, too.
#include <cfloat>
#include <type_traits>

#include "attention/combine.cuh"
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
constexpr int kRows = 64;     // queries of a consumer

// `stages` hold keys or values, in turn; with `value_stages` they hold keys alone.
template <class T, int tile_keys, int stages, int value_stages = 0>
struct Config {
  using Key = T;
  static constexpr bool kInt8 = std::is_same_v<T, int8_t>;
  static constexpr int kTileKeys = tile_keys, kStages = stages, kValueStages = value_stages;
  static constexpr int kKeyBoxes = kHeadDim * sizeof(T) / kBoxRow, kValueBoxes = 2;
  static constexpr int kBoxBytes = kTileKeys * kBoxRow, kQueryBoxBytes = kRows * kBoxRow;
  static constexpr int kKeyBytes = kKeyBoxes * kBoxBytes, kValueBytes = kValueBoxes * kBoxBytes;
  static constexpr int kQueryBytes = kKeyBoxes * kQueryBoxBytes;
  static_assert(kTileKeys % 16 == 0 && kTileKeys <= 256);
  static_assert(kInt8 == (kValueStages > 0), "keys and values that share stages are of one size");
  static_assert(!kInt8 || kTileKeys % (4 * kKeyRun) == 0, "bulk copies are of 16 bytes");
  static_assert(kKeyRun == 8, "8 columns of the accumulator, which a quad of threads has, have one scale");
};

template <class C>
struct Params {
  using Schedule = attention::Schedule<kConsumers * kRows>;

  bf16* out;  // [rows, heads, 128]
  Partials partials;
  const int* valid;  // [1]: the keys are the ring's tokens [0, valid)
  int rows, heads, tokens, ctas;
  bool split_kv;
  // Of int8: [heads, rows] and [heads, k_scales], one for kKeyRun keys; there may be more than the tokens need.
  const float *q_scale = nullptr, *k_scale = nullptr;
  int k_scales = 0;

  __device__ int keys() const { return std::clamp(*valid, 0, tokens); }
  __device__ Schedule schedule() const { return {heads, rows, key_tiles_of(keys(), C::kTileKeys), ctas, split_kv}; }
  __device__ void finish(int row, int head, int column, float4 x, float row_sum) const {
    const float scale = row_sum == 0 ? 0 : 1 / row_sum;
    bf16* to = out + (int64_t(row) * heads + head) * kHeadDim + column;
    *reinterpret_cast<uint2*>(to) = {pack(x.x * scale, x.y * scale), pack(x.z * scale, x.w * scale)};
  }
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
    float of[C::kTileKeys / kKeyRun];
  } key_scale[C::kStages];
  KeyPipeline of_keys;
  ValuePipeline of_values;

  __device__ void init(int consumers) { of_keys.init(consumers), of_values.init(consumers); }
  __device__ KeyPipeline& key_pipeline() { return of_keys; }
  __device__ ValuePipeline& value_pipeline() { return of_values; }
  __device__ uint8_t* keys(int stage) { return key_tile[stage]; }
  __device__ uint8_t* values(int stage) { return value_tile[stage]; }
};

// Which of a CTA's work tiles must be done again, by their numbers; the launch gives no CTA more than kMaxWork.
constexpr int kMaxWork = 1024;
struct Again {
  uint32_t bits[kMaxWork / 32];
  __device__ bool operator[](int i) const { return bits[i / 32] >> i % 32 & 1; }
  __device__ void set(int i) { atomicOr(&bits[i / 32], 1u << i % 32); }
};

// What the producer tells the consumers to do. Without tiles of keys (last = 0) a round ends: the last, if `again`.
struct Work : WorkTile {
  int overlapped;  // tiles of keys [first, overlapped) are taken with p v of one beside the softmax of the next
  bool again;      // in the second round
};

template <class C>
struct Shared {
  using Tiles = std::conditional_t<C::kInt8, SeparateTiles<C>, MixedTiles<C>>;

  alignas(1024) uint8_t query[kConsumers][C::kQueryBytes];
  Tiles tiles;
  // Two each: a consumer releases its queries, and the next work comes, while it still stores the result of this one.
  Work work[kConsumers][2];
  Barrier query_full[kConsumers], query_empty[kConsumers];
  Barrier raw;  // the values of a short tile have landed; the producer has not cleared the rest of the tile yet
  int keys;     // how many
  typename Params<C>::Schedule schedule;
  Again again;
};

// ---------------------------------------------------------------------------------------------------------------------
// The producer: one warp. Its lanes run together; the first one issues the copies.

template <class C>
struct Producer {
  Shared<C>& s;
  const Maps& maps;
  const Params<C>& params;
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
  __device__ void load_query(const Work& work, int count) {
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

  // Of a tile's scales, those of the runs from `run` on: the ring's last tile may have fewer.
  __device__ int scale_bytes(int run) const {
    return std::min(C::kTileKeys / kKeyRun, params.k_scales - run) * int(sizeof(float));
  }

  // Tokens that are not valid may hold anything: their scores are masked.
  __device__ void load_keys(int tile, int head) {
    auto& at = state.keys();
    s.tiles.key_pipeline().acquire(at);
    if (lane == 0) {
      Barrier& full = s.tiles.key_pipeline().full[at.stage];
      const int row = tile * C::kTileKeys, run = row / kKeyRun;
      const int scales = C::kInt8 ? scale_bytes(run) : 0;
      full.arrive_and_expect(C::kKeyBytes + scales);
      load_boxes<typename C::Key>(s.tiles.keys(at.stage), C::kBoxBytes, maps.k, full, head, row);
      if constexpr (C::kInt8)
        sm90::load_bytes(s.tiles.key_scale[at.stage].of, params.k_scale + int64_t(head) * params.k_scales + run, scales,
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

  // Tells the consumers that a round is over.
  __device__ void end(int count, bool again) {
    for (int i = 0; i < kConsumers; ++i) {
      s.query_empty[i].wait(~count & 1);
      __syncwarp();
      if (lane == 0) {
        s.work[i][count & 1].last = 0;
        s.work[i][count & 1].again = again;
        s.query_full[i].arrive();
      }
    }
  }

  __device__ void run() {
    int count = 0;
    load(count, false);
    if constexpr (C::kInt8) {
      end(count++, false);
      for (Barrier& empty : s.query_empty) empty.wait(~count & 1);  // both have marked what is to be done again
      load(count, true);
    }
    end(count, true);
  }

  // All tiles of keys. But int8's loop neither masks nor rescales: there the first one, and those that need neither.
  __device__ int overlapped_until(const Work& work) const {
    if constexpr (!C::kInt8) return work.last;
    return std::max(work.first + 1, work.again ? 0 : std::min(work.last, s.keys / C::kTileKeys));
  }

  // A round: all work, or what is to be done again.
  __device__ void load(int& count, bool again) {
    auto at = s.schedule.start(blockIdx.x);
    Work work;
    work.again = again;
#pragma unroll 1
    for (int i = 0; s.schedule.next(blockIdx.x, at, work); ++i) {
      if (again && !s.again[i]) continue;
      work.overlapped = overlapped_until(work);
      load_keys(work.first, work.head);
      load_query(work, count++);
#pragma unroll 1
      for (int t = work.first; t < work.last; ++t) {
        if (t + 1 < work.last) load_keys(t + 1, work.head);  // q k^T runs one tile ahead of p v
        load_values(t, work.head);
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// A consumer: one warpgroup. wgmma's accumulator layout: a thread holds two rows, 16 warp + lane / 4 and 8 below it; of
// each the columns 8 i + 2 (lane % 4) and the next one, for all i. Element 4 i + 2 r + j: row r, column j of these.

// bfloat16's: the online softmax of a thread's two rows of scores.
template <int kSize>
struct OnlineSoftmax {
  // Precision: float32, and no lazy rescaling: row_max is the largest score so far, so that the largest p is 1, which
  // rounding to bfloat16 leaves alone. It starts at a finite value: rows without keys meet no difference of infinities.
  float row_max[2] = {-FLT_MAX, -FLT_MAX};
  float row_sum[2] = {0, 0};  // of this thread's columns

  // Scores become exp2(kScale (score - row_max)); earlier results must be multiplied by `rescale`.
  __device__ void update(float (&x)[kSize], float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float a = x[2 * r], b = x[2 * r + 1];  // two chains each, for their latency
#pragma unroll
      for (int i = 4; i < kSize; i += 4) a = fmaxf(a, x[i + 2 * r]), b = fmaxf(b, x[i + 2 * r + 1]);
      const float before = row_max[r];
      row_max[r] = fmaxf(before, quad_reduce(fmaxf(a, b), fmaxf));
      rescale[r] = exp2((before - row_max[r]) * kScale);
      const float shift = row_max[r] * kScale;
      a = b = 0;
#pragma unroll
      for (int i = 0; i < kSize; i += 4) {
        float &y = x[i + 2 * r], &z = x[i + 2 * r + 1];
        y = exp2(fmaf(y, kScale, -shift)), z = exp2(fmaf(z, kScale, -shift));
        a += y, b += z;
      }
      row_sum[r] = fmaf(row_sum[r], rescale[r], a + b);
    }
  }
  // For the combine kernel, in the units of q k^T.
  __device__ float shift(int r) const { return row_max[r]; }
};

// int8's: p = exp2(score - shift) of a thread's two rows, scores in log2 units. p and its sums are floats, so any shift
// near a row's largest score serves. One that is made for the first tile of keys does, unless a later score is much
// larger: then the row's sum exceeds kMaxSum, and the work must be done again with a shift that follows the maximum.
template <int kSize>
struct ShiftedSoftmax {
  static constexpr float kHeadroom = 32;     // a shift is so much above the largest score: p is 2^-32 there
  static constexpr float kMaxSum = 0x1p64f;  // below it, sums of p times a value are far from float32's largest

  float factor[2];  // by which an integer and its key's scale become a score
  float row_shift[2] = {-FLT_MAX, -FLT_MAX};
  float row_sum[2] = {0, 0};  // of this thread's columns

  __device__ explicit ShiftedSoftmax(const float (&q_scale)[2]) : factor{q_scale[0] * kScale, q_scale[1] * kScale} {}

  // Scores become p, after the shift is raised to kHeadroom above the largest, where it is not there yet. Earlier
  // results must be multiplied by `rescale`.
  __device__ void raise(float (&x)[kSize], float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = -FLT_MAX;
#pragma unroll
      for (int i = 0; i < kSize; i += 4) largest = fmaxf(largest, fmaxf(x[i + 2 * r], x[i + 2 * r + 1]));
      const float before = row_shift[r];
      row_shift[r] = fmaxf(before, quad_reduce(largest, fmaxf) + kHeadroom);
      rescale[r] = exp2(before - row_shift[r]);
      row_sum[r] *= rescale[r];
#pragma unroll
      for (int i = 0; i < kSize; i += 4) {
        set(x[i + 2 * r], x[i + 2 * r] - row_shift[r], row_sum[r]);
        set(x[i + 2 * r + 1], x[i + 2 * r + 1] - row_shift[r], row_sum[r]);
      }
    }
  }

  // Products become p by the shift that stands; `scale` has those of the tile's runs of keys.
  __device__ void add(int32_t (&x)[kSize], const float* scale) {
#pragma unroll
    for (int i = 0; i < kSize; i += 2) {
      const int r = i / 2 % 2;
      const float of = scale[i / 4] * factor[r];
      set(reinterpret_cast<float&>(x[i]), fmaf(float(x[i]), of, -row_shift[r]), row_sum[r]);
      set(reinterpret_cast<float&>(x[i + 1]), fmaf(float(x[i + 1]), of, -row_shift[r]), row_sum[r]);
    }
  }

  // Products become scores.
  __device__ void scale(float (&y)[kSize], const int32_t (&x)[kSize], const float* scale) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) y[i] = float(x[i]) * (scale[i / 4] * factor[i / 2 % 2]);
  }

  // For the combine kernel, in the units that OnlineSoftmax has.
  __device__ float shift(int r) const { return row_shift[r] * (1 / kScale); }

 private:
  // As an integer (exp2_bits), since the integers of the next tile come to the same registers.
  static __device__ void set(float& p, float x, float& sum) {
    reinterpret_cast<int32_t&>(p) = exp2_bits(x);
    sum += p;
  }
};

template <class C>
struct Consumer {
  using Key = typename C::Key;
  static constexpr int kScores = C::kTileKeys / 2, kOut = kHeadDim / 2;
  using Softmax = std::conditional_t<C::kInt8, ShiftedSoftmax<kScores>, OnlineSoftmax<kScores>>;
  using Sums = sm90::Sum<Key>[kScores];

  const Params<C>& params;
  Shared<C>& s;
  const int index;  // of the warpgroup, among the consumers
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kWarpgroupWarps;
  typename Shared<C>::Tiles::State state;
  float scores[kScores], out[kOut];
  uint32_t p[kScores / 2];  // probabilities in bfloat16, not yet divided by row_sum

  // What q k^T is summed in: the scores, or, of int8, integers in the same registers.
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
      const Work& work = s.work[index][count & 1];  // stays there: registers are short
      if (work.last == 0) {
        if (work.again) return;
        release_query();
        continue;
      }
      Softmax softmax = softmax_of(work);
      attend(work, softmax);
      for (float& sum : softmax.row_sum) sum = quad_sum(sum);
      if constexpr (C::kInt8)
        if (!work.again && overflows(work, softmax) && lane == 0) s.again.set(count);
      work.partial < 0 ? store(work, softmax) : store_partial(work, softmax);
    }
  }

  __device__ void release_query() {
    __syncwarp();  // all lanes have read the work before this one
    if (lane == 0) s.query_empty[index].arrive();
  }

  __device__ Softmax softmax_of(const WorkTile& work) const {
    if constexpr (C::kInt8) {
      float q_scale[2];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        q_scale[r] = live(work, r) ? params.q_scale[int64_t(work.head) * params.rows + work.row + row_of(r)] : 0;
      return Softmax(q_scale);
    } else {
      return {};
    }
  }

  // Whether the shift was too low for a row of the warp. NaN says so too.
  __device__ bool overflows(const WorkTile& work, const Softmax& softmax) const {
    bool mine = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) mine |= live(work, r) && !(softmax.row_sum[r] < Softmax::kMaxSum);
    return __any_sync(0xffffffffu, mine);
  }

  // Of int8, the tiles beyond `overlapped` come one after the other: in the loop, masks and a shift that follows the
  // maximum would take too many registers.
  __device__ void attend(const Work& work, Softmax& softmax) {
#pragma unroll
    for (float& x : out) x = 0;
    attend_overlapped(work, softmax);
    if constexpr (C::kInt8) {
#pragma unroll 1
      for (int t = work.overlapped; t < work.last; ++t) attend_alone(s.keys - t * C::kTileKeys, softmax);
      if (work.overlapped < work.last) release_query();
    }
  }

  __device__ void attend_overlapped(const Work& work, Softmax& softmax) {
    const int keys = s.keys;
    float rescale[2];
    exponentiate<true>(softmax, multiply_qk(), keys - work.first * C::kTileKeys, rescale);
    int v_stage = -1;  // of the p v in flight
#pragma unroll 1
    for (int t = work.first + 1; t < work.overlapped; ++t) {
      finish_pv(v_stage, rescale);
      const auto k = state.keys();
      state.keys().advance();
      s.tiles.key_pipeline().wait(k);
      issue_qk(k.stage);
      s.tiles.value_pipeline().wait(state.values());
      issue_pv(state.values().stage);
      wait_qk(true);
      exponentiate<!C::kInt8>(softmax, k.stage, keys - t * C::kTileKeys, rescale);
      v_stage = state.values().stage;
      state.values().advance();
    }
    if (work.overlapped == work.last) release_query();
    finish_pv(v_stage, rescale);
    multiply_pv();
  }

  // A tile of which the first `count` keys are valid.
  __device__ void attend_alone(int count, Softmax& softmax) {
    float rescale[2];
    exponentiate<true>(softmax, multiply_qk(), count, rescale);
    rescale_out(rescale);
    round_p();
    multiply_pv();
  }

  // q k^T of the next tile. Returns its stage, which is not released yet.
  __device__ int multiply_qk() {
    const int stage = state.keys().stage;
    s.tiles.key_pipeline().wait(state.keys());
    state.keys().advance();
    issue_qk(stage);
    wait_qk(false);
    return stage;
  }

  __device__ void multiply_pv() {
    s.tiles.value_pipeline().wait(state.values());
    issue_pv(state.values().stage);
    wait_pv();
    s.tiles.value_pipeline().release(state.values().stage, lane);
    state.values().advance();
  }

  // The products become p, of keys of which the first `count` are valid, and the keys' stage is released. With kRaise
  // the softmax's shift follows the maximum.
  template <bool kRaise>
  __device__ void exponentiate(Softmax& softmax, int stage, int count, float (&rescale)[2]) {
    if constexpr (!C::kInt8) {
      s.tiles.key_pipeline().release(stage, lane);
      mask(count);
      softmax.update(scores, rescale);
    } else {
      const float* scale = s.tiles.key_scale[stage].of;
      if constexpr (kRaise) {
        softmax.scale(scores, sums(), scale);
        mask(count);
        softmax.raise(scores, rescale);
      } else {
        softmax.add(sums(), scale);
      }
      __syncwarp();
      s.tiles.key_pipeline().release(stage, lane);
    }
  }

  // Ends the p v in flight, if any, and prepares the next one: out relative to the new row_max, and p.
  __device__ void finish_pv(int v_stage, const float (&rescale)[2]) {
    wait_pv();
    if (v_stage >= 0) s.tiles.value_pipeline().release(v_stage, lane);
    if constexpr (!C::kInt8) rescale_out(rescale);
    round_p();
  }

  __device__ int row_of(int r) const { return index * kRows + warp * 16 + lane / 4 + 8 * r; }  // within the output tile
  __device__ bool live(const WorkTile& work, int r) const { return work.row + row_of(r) < work.end_row; }

  __device__ void store(const WorkTile& work, const Softmax& softmax) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!live(work, r)) continue;
      const float scale = softmax.row_sum[r] == 0 ? 0 : 1 / softmax.row_sum[r];  // no key at all: zeros
      bf16* to = params.out + (int64_t(work.row + row_of(r)) * params.heads + work.head) * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kOut; i += 4)
        *reinterpret_cast<uint32_t*>(to + 2 * i) = pack(out[i + 2 * r] * scale, out[i + 2 * r + 1] * scale);
    }
  }

  __device__ void store_partial(const WorkTile& work, const Softmax& softmax) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = int64_t(work.partial) * kConsumers * kRows + row_of(r);
      if (lane % 4 == 0) params.partials.stats[row] = {softmax.shift(r), softmax.row_sum[r]};
      float* to = params.partials.out + row * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kOut; i += 4) *reinterpret_cast<float2*>(to + 2 * i) = {out[i + 2 * r], out[i + 2 * r + 1]};
    }
  }
};

template <class C>
__global__ void __launch_bounds__(sm90::kThreads, 1)
    ring_attention_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Params<C> p) {
  Shared<C>& s = sm90::shared_memory<Shared<C>>();
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / sm90::kWarpgroup, 0);
  if (threadIdx.x == 0) {
    if (sm90::shared_address(&s) % 1024) __trap();  // the swizzle is of addresses
    for (int i = 0; i < kConsumers; ++i) s.query_full[i].init(1), s.query_empty[i].init(kWarpgroupWarps);
    s.tiles.init(kConsumers * kWarpgroupWarps);
    s.raw.init(1);
    sm90::fence_barrier_init();
    sm90::prefetch(maps.q), sm90::prefetch(maps.k), sm90::prefetch(maps.v);
    s.keys = p.keys();
    s.schedule = p.schedule();
    s.again = {};
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

// Attention, then, where output tiles are split, the combination.
template <class C>
cudaError_t launch(const Maps& maps, const Params<C>& p, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<C>);
  const auto kernel = ring_attention_kernel<C>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const cudaLaunchConfig_t config{
      .gridDim = p.ctas, .blockDim = sm90::kThreads, .dynamicSmemBytes = kBytes, .stream = stream};
  error = cudaLaunchKernelEx(&config, kernel, maps, p);
  return error != cudaSuccess ? error : combine(p, stream);
}
}  // namespace longlive::attention
