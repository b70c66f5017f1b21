#pragma once
// Attention over the ring in 8 bits, for Hopper: queries and keys in int8, with a scale for each query and each run of
// kKeyRun keys; p and values in e4m3, with a scale and an offset for each channel of a head. ring_attention.cuh is its
// like in bfloat16, and says what is the same: a persistent stream-K schedule, a producer warp, consumer warpgroups of
// 64 queries, q k^T of the next tile and p v of this one in flight while this tile's p is computed.
//
// p without an exponential: but for how its mantissa rounds, an e4m3 number's bits are its logarithm. Code c stands for
// about 2^(c / 8 - 7), 6 % more half way between powers of two. So p's code is linear in the score: an FMA and a
// conversion. Sums of p are products with a column of ones, so they are of the same p, and its average error cancels.
//
// 17 binades are too few for a shift that stands, as float32's would be, and a running maximum costs as much as all the
// rest. So the shift is lazy: it puts the largest p of the first part at code kTarget, and follows only when a code
// exceeds kLargest, by whole binades, which rescale sums exactly. kTarget is one binade below it, as high as can be:
// what is 12 binades below the largest p may be many keys that together weigh more, above all where the first keys, the
// sinks, have the largest.
#include <cfloat>

#include "attention/combine.cuh"
#include "common/bf16.cuh"
#include "common/math.cuh"
#include "common/reduce.cuh"
#include "common/shapes.h"
#include "common/sm90/pipeline.cuh"
#include "common/sm90/registers.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"

namespace longlive::attention::fp8 {
using sm90::Barrier;
using sm90::kWarpgroup;
using sm90::kWarpgroupWarps;
using sm90::TensorMap;
using e4m3 = __nv_fp8_e4m3;

// Three consumers, with 160 registers each: products read and write all sums in the registers at every step of 32
// bytes, in 8 bits twice as often as in 16, and what else issues waits for them. Two warps in three do.
constexpr int kConsumers = 3, kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kProducerRegisters = 24, kConsumerRegisters = 160;

constexpr int kRows = 64;                   // queries of a consumer
constexpr int kTileKeys = 128, kPart = 64;  // keys of a stage; of what a consumer takes at a time, in two parts
constexpr int kRow = 128;                   // bytes: a head's query or key; a channel's values of a tile
constexpr int kQueryBytes = kRows * kRow, kKeyBytes = kTileKeys * kRow;
constexpr int kValueBytes = kHeadDim * kRow, kOnesBytes = 8 * kRow;
constexpr int kRuns = kTileKeys / kKeyRun;
constexpr int kGroup = 8;  // columns of the accumulator that a quad of threads shares
static_assert(kKeyRun == kGroup && kValueGroup == 2 * kGroup);

constexpr float kLargest = 126, kTarget = 118;  // codes: of 448, the largest e4m3, and a binade below it
constexpr float kBinade = 8;                    // codes
// Scores are in codes times 2^-24, which a conversion to half precision counts.
constexpr float kCode = 0x1p-24f;

struct Params {
  using Schedule = attention::Schedule<kConsumers * kRows>;

  bf16* out;  // [rows, heads, 128]
  Partials partials;
  const int* valid;  // [1]: the keys are the ring's tokens [0, valid)
  int rows, heads, tokens, ctas;
  bool split_kv;
  const float *q_scale, *k_scale;  // [heads, rows]; [heads, k_scales], which may be more than the tokens need
  int k_scales;
  const float *v_scale, *v_offset;  // [heads, 128]

  __device__ int keys() const { return std::clamp(*valid, 0, tokens); }
  __device__ Schedule schedule() const { return {heads, rows, key_tiles_of(keys(), kTileKeys), ctas, split_kv}; }

  // A row's p v over the sum of its p, as values are: of columns [column, column + 1].
  __device__ uint32_t value(int head, int column, float x, float y, float inverse) const {
    if (inverse == 0) return 0;
    const float2 scale = *reinterpret_cast<const float2*>(v_scale + head * kHeadDim + column);
    const float2 offset = *reinterpret_cast<const float2*>(v_offset + head * kHeadDim + column);
    return pack(fmaf(x * inverse, scale.x, offset.x), fmaf(y * inverse, scale.y, offset.y));
  }
  static __device__ float inverse(float row_sum) { return row_sum == 0 ? 0 : 1 / row_sum; }  // no key at all: zeros
  __device__ bf16* at(int row, int head, int column) const {
    return out + (int64_t(row) * heads + head) * kHeadDim + column;
  }
  __device__ void finish(int row, int head, int column, float4 x, float row_sum) const {
    const float i = inverse(row_sum);
    *reinterpret_cast<uint2*>(at(row, head, column)) = {value(head, column, x.x, x.y, i),
                                                        value(head, column + 2, x.z, x.w, i)};
  }
};

// What the producer copies from: rows of queries and keys; values transposed, a row for each channel of each head.
struct Maps {
  TensorMap q, k, v;
};

// What the producer tells a consumer to do. Without tiles of keys (last = 0) there is no more.
struct Work : WorkTile {
  int whole;  // tiles of keys [first, whole) are whole, but perhaps the first one
};

template <int key_stages, int value_stages>
struct Shared {
  using KeyPipeline = sm90::Pipeline<key_stages>;
  using ValuePipeline = sm90::Pipeline<value_stages>;

  alignas(1024) uint8_t query[kConsumers][kQueryBytes];
  alignas(1024) uint8_t keys[key_stages][kKeyBytes];
  struct alignas(1024) {
    uint8_t of[kValueBytes], ones[kOnesBytes];
  } values[value_stages];
  struct alignas(128) {
    float of[kRuns];
  } key_scale[key_stages];
  KeyPipeline of_keys;
  ValuePipeline of_values;
  // Two each: a consumer releases its queries, and the next work comes, while it still stores the result of this one.
  Work work[kConsumers][2];
  Barrier query_full[kConsumers], query_empty[kConsumers];
  Barrier raw;  // the values of a short tile have landed; the producer has not cleared the rest of the tile yet
  int count;    // of keys
  Params::Schedule schedule;
};

// ---------------------------------------------------------------------------------------------------------------------
// The producer: one warp. Its lanes run together; the first one issues the copies.

template <class S>
struct Producer {
  S& s;
  const Maps& maps;
  const Params& params;
  const int lane = threadIdx.x % 32;
  typename S::KeyPipeline::State k_at;
  typename S::ValuePipeline::State v_at;
  uint32_t raw_phase = 0;

  // Tells the consumers their work, the count-th, and loads its queries.
  __device__ void load_query(const Work& work, int count) {
    for (int i = 0; i < kConsumers; ++i) {
      s.query_empty[i].wait(~count & 1);
      __syncwarp();  // as in Pipeline::acquire
      if (lane == 0) {
        s.work[i][count & 1] = work;
        s.query_full[i].arrive_and_expect(kQueryBytes);
        sm90::load_tile(s.query[i], maps.q, s.query_full[i], work.head * kHeadDim, work.row + i * kRows);
      }
    }
  }

  // With their scales, of which the ring's last tile may have fewer. Tokens that are not valid may hold anything.
  __device__ void load_keys(int tile, int head) {
    s.of_keys.acquire(k_at);
    if (lane == 0) {
      Barrier& full = s.of_keys.full[k_at.stage];
      const int run = tile * kRuns, bytes = std::min(int{kRuns}, params.k_scales - run) * int(sizeof(float));
      full.arrive_and_expect(kKeyBytes + bytes);
      sm90::load_tile(s.keys[k_at.stage], maps.k, full, head * kHeadDim, tile * kTileKeys);
      sm90::load_bytes(s.key_scale[k_at.stage].of, params.k_scale + int64_t(head) * params.k_scales + run, bytes, full);
    }
    k_at.advance();
  }

  // Values of tokens that are not valid are multiplied by p = 0, which does not remove NaN: they are cleared.
  __device__ void load_values(int tile, int head) {
    s.of_values.acquire(v_at);
    Barrier& full = s.of_values.full[v_at.stage];
    const int count = s.count - tile * kTileKeys;
    const bool is_short = count < kTileKeys;
    if (lane == 0) {
      Barrier& landed = is_short ? s.raw : full;
      landed.arrive_and_expect(kValueBytes);
      sm90::load_tile(s.values[v_at.stage].of, maps.v, landed, tile * kTileKeys, head * kHeadDim);
    }
    if (is_short) {
      s.raw.wait(raw_phase);
      raw_phase ^= 1;
      clear_from(s.values[v_at.stage].of, count);
      sm90::fence_proxy_async();
      __syncwarp();
      if (lane == 0) full.arrive();
    }
    v_at.advance();
  }

  // A lane has one group of each fourth channel. The swizzle permutes the groups of a channel's row.
  __device__ void clear_from(uint8_t* values, int count) {
    constexpr int kGroups = kRow / kValueGroup;
    const int group = lane % kGroups, left = count - group * kValueGroup;
    if (left >= kValueGroup) return;
    uint32_t keep[4] = {};
#pragma unroll
    for (int j = 0; j < kValueGroup; ++j)
      if (value_at(j) < left) keep[j / 4] |= 0xffu << j % 4 * 8;
#pragma unroll 1
    for (int channel = lane / kGroups; channel < kHeadDim; channel += 32 / kGroups) {
      uint4& x = *reinterpret_cast<uint4*>(values + channel * kRow + (group ^ channel % kGroups) * kValueGroup);
      x = {x.x & keep[0], x.y & keep[1], x.z & keep[2], x.w & keep[3]};
    }
  }

  __device__ void write_ones() {
    for (auto& values : s.values)
      for (int i = lane; i < kOnesBytes / 4; i += 32) reinterpret_cast<uint32_t*>(values.ones)[i] = 0x38383838u;
    sm90::fence_proxy_async();
    __syncwarp();
  }

  __device__ void run() {
    write_ones();
    auto cursor = s.schedule.start(blockIdx.x);
    Work work;
    int count = 0;
#pragma unroll 1
    for (; s.schedule.next(blockIdx.x, cursor, work); ++count) {
      work.whole = std::min(work.last, s.count / kTileKeys);
      load_keys(work.first, work.head);
      load_query(work, count);
#pragma unroll 1
      for (int t = work.first; t < work.last; ++t) {
        if (t + 1 < work.last) load_keys(t + 1, work.head);  // q k^T runs ahead of p v
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

template <class S>
struct Consumer {
  static constexpr int kScores = kPart / 2, kOut = kHeadDim / 2, kWords = kPart / 8;
  using P = uint32_t[kWords];

  const Params& params;
  S& s;
  const int index;  // of the warpgroup, among the consumers
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kWarpgroupWarps;
  typename S::KeyPipeline::State k_at;
  typename S::ValuePipeline::State v_at;
  int32_t products[kScores];  // q k^T; then these as floats
  float out[kOut], part_sum[4];
  P p, next_p;                            // codes of the part whose p v comes next, and of the part after it
  float factor[2], shift[2], row_sum[2];  // of a row: by which a product and its key's scale become a score
  float rescale[2];

  // Issues products = q k^T of a part of a tile.
  template <int kWhich>
  __device__ void issue_qk() {
    const uint64_t q = sm90::swizzled_descriptor(s.query[index]);
    const uint64_t k = sm90::swizzled_descriptor(s.keys[k_at.stage] + kWhich * kPart * kRow);
    sm90::pin(products);
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kRow / 32; ++i)
      i == 0 ? sm90::mma_ss<int8_t, kPart, false>(products, q, k)
             : sm90::mma_ss<int8_t, kPart>(products, q + 2 * i, k + 2 * i);
    sm90::mma_commit();
  }

  // Issues out += p v of a part, and part_sum = the sums of its p.
  template <int kWhich>
  __device__ void issue_pv(P& p) {
    const uint64_t v = sm90::swizzled_descriptor(s.values[v_at.stage].of) + kWhich * kPart / 16;
    const uint64_t ones = sm90::swizzled_descriptor(s.values[v_at.stage].ones) + kWhich * kPart / 16;
    sm90::pin(out);
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kPart / 32; ++i) {
      sm90::mma_rs<e4m3>(out, p + 4 * i, v + 2 * i);
      i == 0 ? sm90::mma_rs<e4m3, 8, false>(part_sum, p, ones)
             : sm90::mma_rs<e4m3, 8>(part_sum, p + 4 * i, ones + 2 * i);
    }
    sm90::mma_commit();
  }

  __device__ void wait_qk(bool pv_in_flight) {
    pv_in_flight ? sm90::mma_wait<1>() : sm90::mma_wait<0>();
    sm90::pin(products);
  }
  // Precision: sums of p are of numbers of one sign, of which the tensor core would cut off more the more there are:
  // those of a part are added in float32.
  __device__ void wait_pv() {
    sm90::mma_wait<0>();
    sm90::pin(out);
    sm90::pin(part_sum);
    row_sum[0] += part_sum[0], row_sum[1] += part_sum[2];
  }

  // Of a part's keys, that of element i.
  __device__ int column(int i) const { return i / 4 * kGroup + lane % 4 * 2 + i % 2; }
  __device__ float product(int i) const { return __int_as_float(products[i]); }
  __device__ void to_floats() {
#pragma unroll
    for (int32_t& x : products) x = __float_as_int(float(x));
  }

  // Codes of two neighbouring columns, as integers of 16 bits.
  __device__ uint32_t codes(int i, float factor, float shift) const {
    return pack_counts(fmaf(product(i), factor, -shift), fmaf(product(i + 1), factor, -shift));
  }

  // The codes of p; whether one of the warp's is too large, or not a number.
  __device__ bool round_p(P& p, const float* scale) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kPart / kValueGroup; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t a = codes(8 * i + 2 * r, scale[2 * i] * factor[r], shift[r]);
        const uint32_t b = codes(8 * i + 4 + 2 * r, scale[2 * i + 1] * factor[r], shift[r]);
        p[i / 2 * 4 + i % 2 * 2 + r] = __byte_perm(a, b, 0x6420);
        largest = __vimax3_u16x2(largest, a, b);
      }
    constexpr uint32_t kToo = (0x7f - int(kLargest)) * 0x10001u;  // brings what is too large to 0x80 and above
    return __any_sync(0xffffffffu, (largest + kToo) & 0xff80ff80u);
  }

  // Raises the shifts of rows whose largest code is too large, or sets all of them, by which p is then rescaled. Keys
  // from `count` on are not valid: products and scales may be anything.
  __device__ void raise(const float* scale, bool all, int count) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = -FLT_MAX;
#pragma unroll
      for (int i = 0; i < kScores; i += 4)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (column(i + j) < count) largest = fmaxf(largest, product(i + 2 * r + j) * (scale[i / 4] * factor[r]));
      largest = quad_reduce(largest, fmaxf);
      constexpr float kStep = kBinade * kCode;
      const float before = shift[r];
      const bool is_due = all ? largest > -FLT_MAX : largest - before > kLargest * kCode;
      if (is_due) shift[r] = ceilf((largest - kTarget * kCode) / kStep) * kStep;
      rescale[r] = all ? 1 : exp2((before - shift[r]) / kStep);
    }
  }
  __device__ void rescale_out() {
#pragma unroll
    for (int r = 0; r < 2; ++r) row_sum[r] *= rescale[r];
#pragma unroll
    for (int i = 0; i < kOut; ++i) out[i] *= rescale[i / 2 % 2];
  }

  // p = 0 of keys that are not valid.
  __device__ void mask_p(int count) {
#pragma unroll
    for (int i = 0; i < 4 * kWords; ++i) {  // byte i % 4 of a word
      const int word = i / 4, group = word / 4 * 2 + word % 4 / 2;
      const int key = group * kValueGroup + i % 4 / 2 * kGroup + lane % 4 * 2 + i % 2;
      if (key >= count) p[word] &= ~(0xffu << i % 4 * 8);
    }
  }

  // A part alone: its shift follows, and keys may be missing.
  template <int kWhich>
  __device__ void take(int count, bool is_first) {
    const float* scale = s.key_scale[k_at.stage].of + kWhich * (kPart / kKeyRun);
    issue_qk<kWhich>();
    wait_qk(false);
    to_floats();
    raise(scale, is_first, count);
    rescale_out();
    round_p(p, scale);
    if (count < kPart) mask_p(count);
    sm90::pin(p);
  }

  // q k^T of a whole part, whose codes become `to`, beside p v of the part before it.
  template <int kWhich>
  __device__ void step(P& from, P& to) {
    const float* scale = s.key_scale[k_at.stage].of + kWhich * (kPart / kKeyRun);
    issue_qk<kWhich>();
    issue_pv<1 - kWhich>(from);
    wait_qk(true);
    to_floats();
    const bool is_high = round_p(to, scale);
    if (is_high) raise(scale, false, kPart), round_p(to, scale);
    sm90::pin(to);
    wait_pv();
    if (is_high) rescale_out();
  }

  __device__ void attend(const Work& work) {
    start(work);
    s.of_keys.wait(k_at);
    take<0>(s.count - work.first * kTileKeys, true);
#pragma unroll 1
    for (int t = work.first;;) {
      s.of_values.wait(v_at);
      issue_pv<0>(p);
      wait_pv();
      take<1>(s.count - t * kTileKeys - kPart, false);
      release_keys();
#pragma unroll 1
      for (; t + 1 < work.whole; ++t) {
        s.of_keys.wait(k_at);
        step<0>(p, next_p);
        release_values();
        s.of_values.wait(v_at);
        step<1>(next_p, p);
        release_keys();
      }
      issue_pv<1>(p);
      wait_pv();
      release_values();
      if (++t == work.last) break;
      s.of_keys.wait(k_at);
      take<0>(s.count - t * kTileKeys, false);
    }
    __syncwarp();  // all lanes have read the work before this one
    if (lane == 0) s.query_empty[index].arrive();
  }

  __device__ void start(const Work& work) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool is_live = live(work, r);
      const float scale = is_live ? params.q_scale[int64_t(work.head) * params.rows + work.row + row_of(r)] : 0;
      factor[r] = scale * (kScale * kBinade * kCode);
      shift[r] = row_sum[r] = 0;
    }
#pragma unroll
    for (float& x : out) x = 0;
  }

  __device__ void release_keys() {
    __syncwarp();  // all lanes have read the scales
    s.of_keys.release(k_at.stage, lane);
    k_at.advance();
  }
  __device__ void release_values() {
    s.of_values.release(v_at.stage, lane);
    v_at.advance();
  }

  __device__ void run() {
#pragma unroll 1
    for (int count = 0;; ++count) {
      s.query_full[index].wait(count & 1);
      const Work& work = s.work[index][count & 1];  // stays there: registers are short
      if (work.last == 0) return;
      attend(work);
      work.partial < 0 ? store(work) : store_partial(work);
    }
  }

  __device__ int row_of(int r) const { return index * kRows + warp * 16 + lane / 4 + 8 * r; }  // within the output tile
  __device__ bool live(const WorkTile& work, int r) const { return work.row + row_of(r) < work.end_row; }

  __device__ void store(const WorkTile& work) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!live(work, r)) continue;
      const float inverse = Params::inverse(row_sum[r]);
      bf16* to = params.at(work.row + row_of(r), work.head, lane % 4 * 2);
#pragma unroll
      for (int i = 0; i < kOut; i += 4)
        *reinterpret_cast<uint32_t*>(to + 2 * i) =
            params.value(work.head, lane % 4 * 2 + 2 * i, out[i + 2 * r], out[i + 2 * r + 1], inverse);
    }
  }

  __device__ void store_partial(const WorkTile& work) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = int64_t(work.partial) * kConsumers * kRows + row_of(r);
      if (lane % 4 == 0) params.partials.stats[row] = {shift[r] / (kScale * kBinade * kCode), row_sum[r]};
      float* to = params.partials.out + row * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kOut; i += 4) *reinterpret_cast<float2*>(to + 2 * i) = {out[i + 2 * r], out[i + 2 * r + 1]};
    }
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    ring_attention_fp8_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Params p) {
  S& s = sm90::shared_memory<S>();
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);
  if (threadIdx.x == 0) {
    if (sm90::shared_address(&s) % 1024) __trap();  // the swizzle is of addresses
    for (int i = 0; i < kConsumers; ++i) s.query_full[i].init(1), s.query_empty[i].init(kWarpgroupWarps);
    s.of_keys.init(kConsumers * kWarpgroupWarps);
    s.of_values.init(kConsumers * kWarpgroupWarps);
    s.raw.init(1);
    sm90::fence_barrier_init();
    sm90::prefetch(maps.q), sm90::prefetch(maps.k), sm90::prefetch(maps.v);
    s.count = p.keys();
    s.schedule = p.schedule();
  }
  __syncthreads();
  if (warpgroup == 0) {
    sm90::reg_dealloc<kProducerRegisters>();
    if (threadIdx.x < 32) Producer<S>{s, maps, p}.run();
  } else {
    sm90::reg_alloc<kConsumerRegisters>();
    Consumer<S>{p, s, warpgroup - 1}.run();
  }
}

// Attention, then, where output tiles are split, the combination.
template <class S>
cudaError_t launch(const Maps& maps, const Params& p, cudaStream_t stream) {
  constexpr int kBytes = sizeof(S);
  const auto kernel = ring_attention_fp8_kernel<S>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const cudaLaunchConfig_t config{
      .gridDim = p.ctas, .blockDim = kThreads, .dynamicSmemBytes = kBytes, .stream = stream};
  error = cudaLaunchKernelEx(&config, kernel, maps, p);
  return error != cudaSuccess ? error : combine(p, stream);
}
}  // namespace longlive::attention::fp8
