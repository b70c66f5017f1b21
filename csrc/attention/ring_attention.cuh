#pragma once
// FlashAttention for Hopper: softmax(q k^T / sqrt(128)) v over the first tokens of a KV cache that is a ring.
// Persistent: a CTA per multiprocessor computes the stream-K schedule from their number, which it reads on the device,
// and does its share.
//
// Warp-specialised: a producer warp loads tiles of keys and values by TMA into the stages of a pipeline; two consumer
// warpgroups of 64 queries each run q k^T of the next tile and p v of this one while they compute this tile's online
// softmax. They are not ordered among themselves: ping-pong by named barriers costs 2 % (docs/attention.md).
//
// Queries, keys, values, p and the result are bfloat16; ring_attention_fp8.cuh is its like in 8 bits.
#include <cfloat>

#include "attention/combine.cuh"
#include "common/bf16.cuh"
#include "common/math.cuh"
#include "common/reduce.cuh"
#include "common/sm90/pipeline.cuh"
#include "common/sm90/registers.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"

namespace longlive::attention {
using sm90::Barrier;
using sm90::kConsumers;
using sm90::kWarpgroupWarps;
using sm90::TensorMap;

constexpr int kBoxRow = 128;            // bytes; a head's row is two of them
constexpr int kRows = 64;               // queries of a consumer
constexpr int kColumns = kBoxRow / 2;   // of a box

template <int tile_keys, int stages>
struct Config {
  static constexpr int kTileKeys = tile_keys, kStages = stages;
  static constexpr int kBoxBytes = kTileKeys * kBoxRow, kQueryBoxBytes = kRows * kBoxRow;
  static constexpr int kTileBytes = 2 * kBoxBytes, kQueryBytes = 2 * kQueryBoxBytes;
  static_assert(kTileKeys % 16 == 0 && kTileKeys <= 256);
};

template <class C>
struct Params {
  using Schedule = attention::Schedule<kConsumers * kRows>;

  bf16* out;  // [rows, heads, 128]
  Partials partials;
  const int* valid;  // [1]: the keys are the ring's tokens [0, valid)
  int rows, heads, tokens, ctas;
  bool split_kv;

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

// What the producer tells a consumer to do. Without tiles of keys (last = 0) there is no more.
using Work = WorkTile;

template <class C>
struct Shared {
  using Pipeline = sm90::Pipeline<C::kStages>;

  alignas(1024) uint8_t query[kConsumers][C::kQueryBytes];
  alignas(1024) uint8_t tile[C::kStages][C::kTileBytes];  // keys and values in turn
  Pipeline pipeline;
  // Two each: a consumer releases its queries, and the next work comes, while it still stores the result of this one.
  Work work[kConsumers][2];
  Barrier query_full[kConsumers], query_empty[kConsumers];
  Barrier raw;  // the values of a short tile have landed; the producer has not cleared the rest of the tile yet
  int keys;     // how many
  typename Params<C>::Schedule schedule;
};

// ---------------------------------------------------------------------------------------------------------------------
// The producer: one warp. Its lanes run together; the first one issues the copies.

template <class C>
struct Producer {
  Shared<C>& s;
  const Maps& maps;
  const int lane = threadIdx.x % 32;
  typename Shared<C>::Pipeline::State at;
  uint32_t raw_phase = 0;

  // Rows of a head, box beside box.
  static __device__ void load_boxes(uint8_t* to, int box_bytes, const TensorMap& map, Barrier& full, int head,
                                    int row) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
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
        load_boxes(s.query[i], C::kQueryBoxBytes, maps.q, s.query_full[i], work.head, work.row + i * kRows);
      }
    }
  }

  // Tokens that are not valid may hold anything: their scores are masked.
  __device__ void load_keys(int tile, int head) {
    s.pipeline.acquire(at);
    if (lane == 0) {
      Barrier& full = s.pipeline.full[at.stage];
      full.arrive_and_expect(C::kTileBytes);
      load_boxes(s.tile[at.stage], C::kBoxBytes, maps.k, full, head, tile * C::kTileKeys);
    }
    at.advance();
  }

  // Their values are multiplied by p = 0, which does not remove NaN: they are cleared.
  __device__ void load_values(int tile, int head) {
    s.pipeline.acquire(at);
    Barrier& full = s.pipeline.full[at.stage];
    const int row = tile * C::kTileKeys, count = s.keys - row;
    const bool is_short = count < C::kTileKeys;
    if (lane == 0) {
      Barrier& landed = is_short ? s.raw : full;
      landed.arrive_and_expect(C::kTileBytes);
      load_boxes(s.tile[at.stage], C::kBoxBytes, maps.v, landed, head, row);
    }
    if (is_short) {
      s.raw.wait(raw_phase);
      raw_phase ^= 1;
      clear_from(s.tile[at.stage], count);
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

  __device__ void run() {
    auto cursor = s.schedule.start(blockIdx.x);
    Work work;
    int count = 0;
#pragma unroll 1
    for (; s.schedule.next(blockIdx.x, cursor, work); ++count) {
      load_keys(work.first, work.head);
      load_query(work, count);
#pragma unroll 1
      for (int t = work.first; t < work.last; ++t) {
        if (t + 1 < work.last) load_keys(t + 1, work.head);  // q k^T runs one tile ahead of p v
        load_values(t, work.head);
      }
    }
    for (int i = 0; i < kConsumers; ++i) {
      s.query_empty[i].wait(~count & 1);
      __syncwarp();
      if (lane == 0) {
        s.work[i][count & 1].last = 0;
        s.query_full[i].arrive();
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// A consumer: one warpgroup. wgmma's accumulator layout: a thread holds two rows, 16 warp + lane / 4 and 8 below it; of
// each the columns 8 i + 2 (lane % 4) and the next one, for all i. Element 4 i + 2 r + j: row r, column j of these.

// The online softmax of a thread's two rows of scores.
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
};

template <class C>
struct Consumer {
  static constexpr int kScores = C::kTileKeys / 2, kOut = kHeadDim / 2;
  using Softmax = OnlineSoftmax<kScores>;

  const Params<C>& params;
  Shared<C>& s;
  const int index;  // of the warpgroup, among the consumers
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kWarpgroupWarps;
  typename Shared<C>::Pipeline::State at;
  float scores[kScores], out[kOut];
  uint32_t p[kScores / 2];  // probabilities in bfloat16, not yet divided by row_sum

  // Issues scores = q k^T.
  __device__ void issue_qk(int stage) {
    const uint64_t q = sm90::swizzled_descriptor(s.query[index]), k = sm90::swizzled_descriptor(s.tile[stage]);
    sm90::pin(scores);
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kHeadDim / sm90::kDepth<bf16>; ++i) {  // 32 bytes, within the rows of a box
      const int box = i / 4, bytes = i % 4 * 32;
      const uint64_t a = q + (box * C::kQueryBoxBytes + bytes) / 16, b = k + (box * C::kBoxBytes + bytes) / 16;
      i == 0 ? sm90::mma_ss<bf16, C::kTileKeys, false>(scores, a, b) : sm90::mma_ss<bf16, C::kTileKeys>(scores, a, b);
    }
    sm90::mma_commit();
  }

  // Issues out += p v.
  __device__ void issue_pv(int stage) {
    const uint64_t v = sm90::swizzled_descriptor(s.tile[stage], C::kBoxBytes);
    sm90::pin(out);
    sm90::pin(p);
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < C::kTileKeys / 16; ++i) sm90::mma_rs<bf16>(out, p + 4 * i, v + i * 16 * kBoxRow / 16);
    sm90::mma_commit();
  }

  __device__ void wait_qk(bool pv_in_flight) {
    pv_in_flight ? sm90::mma_wait<1>() : sm90::mma_wait<0>();
    sm90::pin(scores);
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
      if (work.last == 0) return;
      Softmax softmax;
      attend(work, softmax);
      for (float& sum : softmax.row_sum) sum = quad_sum(sum);
      work.partial < 0 ? store(work, softmax) : store_partial(work, softmax);
    }
  }

  __device__ void attend(const Work& work, Softmax& softmax) {
    const int keys = s.keys;
    float rescale[2];
#pragma unroll
    for (float& x : out) x = 0;
    const int first = at.stage;
    s.pipeline.wait(at);
    at.advance();
    issue_qk(first);
    wait_qk(false);
    exponentiate(softmax, first, keys - work.first * C::kTileKeys, rescale);
    int v_stage = -1;  // of the p v in flight
#pragma unroll 1
    for (int t = work.first + 1; t < work.last; ++t) {
      finish_pv(v_stage, rescale);
      const auto k = at;
      at.advance();
      s.pipeline.wait(k);
      issue_qk(k.stage);
      s.pipeline.wait(at);
      issue_pv(at.stage);
      wait_qk(true);
      exponentiate(softmax, k.stage, keys - t * C::kTileKeys, rescale);
      v_stage = at.stage;
      at.advance();
    }
    if (lane == 0) s.query_empty[index].arrive();
    finish_pv(v_stage, rescale);
    s.pipeline.wait(at);
    issue_pv(at.stage);
    wait_pv();
    s.pipeline.release(at.stage, lane);
    at.advance();
  }

  // The scores become p, of keys of which the first `count` are valid, and the keys' stage is released.
  __device__ void exponentiate(Softmax& softmax, int stage, int count, float (&rescale)[2]) {
    s.pipeline.release(stage, lane);
    mask(count);
    softmax.update(scores, rescale);
  }

  // Ends the p v in flight, if any, and prepares the next one: out relative to the new row_max, and p.
  __device__ void finish_pv(int v_stage, const float (&rescale)[2]) {
    wait_pv();
    if (v_stage >= 0) s.pipeline.release(v_stage, lane);
    rescale_out(rescale);
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
      if (lane % 4 == 0) params.partials.stats[row] = {softmax.row_max[r], softmax.row_sum[r]};
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
    s.pipeline.init(kConsumers * kWarpgroupWarps);
    s.raw.init(1);
    sm90::fence_barrier_init();
    sm90::prefetch(maps.q), sm90::prefetch(maps.k), sm90::prefetch(maps.v);
    s.keys = p.keys();
    s.schedule = p.schedule();
  }
  __syncthreads();
  if (warpgroup == 0) {
    sm90::reg_dealloc<sm90::kProducerRegisters>();
    if (threadIdx.x < 32) Producer<C>{s, maps}.run();
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
