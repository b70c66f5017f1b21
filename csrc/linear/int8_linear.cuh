#pragma once
// x weight^T of int8 matrices on Hopper's tensor cores, with scales, bias and GELU in the epilogue.
//
// Warp-specialised and persistent, in clusters of CTAs whose tiles share their weights (tiles.h). One producer warp
// loads tiles of x and weight by TMA, its part of the weights for all CTAs; two consumer warpgroups of 64 rows each
// multiply. What can wait of a tile's epilogue is done between the next tile's products. Where groups of the depth have
// scales of their own, one is converted while another is multiplied.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/bf16.cuh"
#include "common/math.cuh"
#include "common/reduce.cuh"
#include "common/sm90/cluster.cuh"
#include "common/sm90/pipeline.cuh"
#include "common/sm90/registers.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"
#include "linear/tiles.h"

namespace longlive::linear {
using sm90::Barrier;
using sm90::kConsumers;
using sm90::kWarpgroupWarps;
using sm90::TensorMap;

constexpr int kConsumerRows = kTileRows / kConsumers, kWarpRows = kConsumerRows / kWarpgroupWarps;

// Scale of x: one a row, or one a row and group of the depth, for which the sums leave the integers after each group.
enum class Scale { kRow, kGroup };
// What the epilogue stores: bfloat16, or GELU's result in int8 with a scale for each row of a tile.
enum class Result { kPlain, kGelu };

template <Scale scale, Result result, int columns, int stages, int accumulators = 1>
struct Config {
  static constexpr Scale kScale = scale;
  static constexpr Result kResult = result;
  static constexpr int kColumns = columns, kStages = stages, kSums = columns / 2;
  static constexpr int kAccumulators = accumulators;
  static constexpr int kXBytes = kTileRows * kStep;
  static constexpr int kPart = columns / kCluster;  // of the weights, which a CTA loads for all
  static constexpr int kPartBytes = kPart * kStep, kWeightBytes = columns * kStep;
  using Sum = std::conditional_t<scale == Scale::kRow, int32_t, float>;
  static_assert(kPartBytes % 1024 == 0 && columns % 32 == 0);
  static_assert(stages > 1);  // one is released while the next is multiplied
  static_assert(accumulators == 1 || (accumulators == 2 && scale == Scale::kGroup));
};

// What is launched, with as many stages as shared memory holds and as many accumulators as registers do.
template <int columns>
using Rows = Config<Scale::kRow, Result::kPlain, columns, 5>;  // 192 or 224 columns
template <int columns>
using Groups =
    Config<Scale::kGroup, Result::kPlain, columns, columns == 128 ? 7 : 6, columns == 128 ? 2 : 1>;  // or 160
constexpr int kGeluColumns = 256;
using Gelu = Config<Scale::kRow, Result::kGelu, kGeluColumns, 4>;

struct Params {
  const float* x_scale;       // [groups, rows]
  const float* weight_scale;  // [columns]
  const bf16* bias;           // [columns]
  void* out;                  // [rows, columns]
  float* out_scale;           // [columns / tile's, rows], of GELU's result
  int rows, columns;
  int steps;        // of the depth
  int group_steps;  // of a group
  Tiles tiles;
};

// What the epilogue needs of a tile's columns.
template <class C>
struct Columns {
  float scale[C::kColumns];
  bf16 bias[C::kColumns];
};

template <class C>
struct Shared {
  using Stages = sm90::Pipeline<C::kStages, 1>;
  using Tiles = sm90::Pipeline<2>;

  struct alignas(1024) Stage {
    uint8_t x[C::kXBytes], weight[C::kWeightBytes];
  };
  Stage stage[C::kStages];
  Columns<C> columns[2];  // of this tile and the next one
  Stages stages;
  Tiles tiles;
  Barrier turn[kConsumers];  // a phase ends as this consumer's turn begins
};

// Calls f with each of this CTA's work tiles.
template <class C, class F>
__device__ void for_each_tile(const Params& p, F f) {
  const int rank = int(sm90::cluster_rank());
#pragma unroll 1
  for (int set = blockIdx.x / kCluster; set < p.tiles.sets(); set += gridDim.x / kCluster) f(p.tiles.at(set, rank));
}

// ---------------------------------------------------------------------------------------------------------------------
// The producer: one warp. Its lanes run together; the first one issues the copies.

template <class C>
struct Producer {
  const Params& p;
  Shared<C>& s;
  const TensorMap &x, &weight;
  const int lane = threadIdx.x % 32;
  const int rank = int(sm90::cluster_rank());
  typename Shared<C>::Stages::State state;
  typename Shared<C>::Tiles::State next;

  __device__ void run() {
    for_each_tile<C>(p, [&](const WorkTile& tile) {
      load_columns(tile.column);
#pragma unroll 1
      for (int step = 0; step < p.steps; ++step) load(tile, step * kStep);
    });
  }

  __device__ void load_columns(int column) {
    s.tiles.acquire(next);
    if (lane == 0) {
      Columns<C>& columns = s.columns[next.stage];
      Barrier& full = s.tiles.full[next.stage];
      const int count = min(C::kColumns, p.columns - column), bytes = count * int(sizeof(float));
      full.arrive_and_expect(bytes + bytes / 2);
      sm90::load_bytes(columns.scale, p.weight_scale + column, bytes, full);
      sm90::load_bytes(columns.bias, p.bias + column, bytes / 2, full);
    }
    next.advance();
  }

  // The stage must be empty in all CTAs of the cluster: a part of the weights goes to all.
  __device__ void load(const WorkTile& tile, int depth) {
    s.stages.acquire(state);
    if (lane == 0) {
      auto& stage = s.stage[state.stage];
      Barrier& full = s.stages.full[state.stage];
      full.arrive_and_expect(C::kXBytes + C::kWeightBytes);
      sm90::load_tile(stage.x, x, full, depth, tile.row);
      if (tile.shares_weight) {
        sm90::load_tile_to_cluster<(1 << kCluster) - 1>(stage.weight + rank * C::kPartBytes, weight, full, depth,
                                                        tile.column + rank * C::kPart);
      } else {
        for (int part = 0; part < kCluster; ++part)
          sm90::load_tile(stage.weight + part * C::kPartBytes, weight, full, depth, tile.column + part * C::kPart);
      }
    }
    state.advance();
  }
};

// GELU in its tanh form: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. Precision: half, whose error is a twentieth
// of what int8 leaves; x beyond its range gives infinity or NaN, and so is the scale.
__device__ inline __half2 gelu(__half2 x) {
  constexpr float kFactor = 0.7978845608028654f;
  const __half2 half = __hmul2(x, __float2half2_rn(0.5f));
  const __half2 inner = __hfma2(__hmul2(x, x), __float2half2_rn(kFactor * 0.044715f), __float2half2_rn(kFactor));
  return __hfma2(half, tanh_approx(__hmul2(x, inner)), half);
}

// As RowScale, of pairs of halves. The inverse is a half: the scale is what that stands for, and at least 2^-15.
struct HalfScale {
  float scale;
  __half2 inverse;

  HalfScale() = default;
  __device__ explicit HalfScale(__half2 largest) {
    const float amax = __half2float(__hmax_nan(__low2half(largest), __high2half(largest)));
    const __half half = __float2half_rn(fminf(__fdividef(127.f, amax), 32768.f));
    inverse = __half2half2(half);
    scale = amax == 0 ? 0 : amax <= 65504.f ? __fdividef(1.f, __half2float(half)) : amax * INFINITY;
  }
  // Four int8, the first in the lowest byte. 1536 + n, for a small integer n, has n's low byte as its own.
  __device__ uint32_t pack(__half2 a, __half2 b) const {
    const __half2 magic = __float2half2_rn(1536.f);
    const __half2 x = __hfma2(a, inverse, magic), y = __hfma2(b, inverse, magic);
    return __byte_perm(reinterpret_cast<const uint32_t&>(x), reinterpret_cast<const uint32_t&>(y), 0x6420);
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// A consumer's half of a tile. A thread has two rows, lane / 4 of its warp's 16 and 8 below it.

template <class C>
struct ThreadRows {
  const int first;
  float scale[2];  // of x

  __device__ ThreadRows(const Params& p, const WorkTile& tile, int consumer)
      : first(tile.row + consumer * kConsumerRows + int(threadIdx.x) / 32 % kWarpgroupWarps * kWarpRows +
              int(threadIdx.x) % 32 / 4) {
#pragma unroll
    for (int r = 0; r < 2; ++r) scale[r] = C::kScale == Scale::kRow && at(r) < p.rows ? __ldg(p.x_scale + at(r)) : 1.f;
  }
  __device__ int at(int r) const { return first + 8 * r; }
};

// Scales of x for a thread's two rows, of a group of the depth after another.
struct GroupScales {
  const int rows[2], stride;
  const float* next;
  float scale[2];

  template <class C>
  __device__ GroupScales(const Params& p, const ThreadRows<C>& at)
      : rows{min(at.at(0), p.rows - 1), min(at.at(1), p.rows - 1)}, stride(p.rows), next(p.x_scale) {}
  __device__ void load() {
#pragma unroll
    for (int r = 0; r < 2; ++r) scale[r] = __ldg(next + rows[r]);
    next += stride;
  }
};

// The epilogue. Of each block of 32 columns a thread has those that the instruction numbers 8 i + 2 (lane % 4) + j:
// packed weights make them 8 (lane % 4) + 2 i + j, eight in a run. `take` makes pairs of 16 bits of a tile's sums,
// which are free then; the rest comes in kSlots pieces: slot(0), slot(1) ...
template <class C>
struct Epilogue {
  static constexpr bool kGelu = C::kResult == Result::kGelu;
  static constexpr int kBlocks = C::kColumns / 32, kRun = 8;
  static constexpr int kSlots = kBlocks + (kGelu ? ceil_div(kBlocks, 2) : 0);

  const Params& p;
  const int lane = threadIdx.x % 32;
  int row = 0, column;                      // of the tile that was taken: this thread's first row, the first column
  uint32_t run[kBlocks][2][kRun / 2] = {};  // bfloat16, or halves: first GELU's arguments, then its results
  __half2 largest[2];
  HalfScale scale[2];

  __device__ explicit Epilogue(const Params& p) : p(p), column(p.columns) {}  // of no tile: nothing is stored

  // `scale` and `bias` are those of the tile's columns.
  template <class Sums>
  __device__ void take(const Sums& sums, const WorkTile& tile, const ThreadRows<C>& rows, const float* scale,
                       const bf16* bias) {
    row = rows.first, column = tile.column;
    largest[0] = largest[1] = __float2half2_rn(0);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int start = 32 * block + lane % 4 * kRun;
      const float4* scales = reinterpret_cast<const float4*>(scale + start);
      const float4 s = scales[0], t = scales[1];
      const float factors[kRun] = {s.x, s.y, s.z, s.w, t.x, t.y, t.z, t.w};
      const uint4 biases = *reinterpret_cast<const uint4*>(bias + start);
      const uint32_t bias_pairs[kRun / 2] = {biases.x, biases.y, biases.z, biases.w};
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int i = 0; i < kRun / 2; ++i) {
          const auto* pair = &sums[16 * block + 4 * i + 2 * r];
          run[block][r][i] = pair_of(fmaf(float(pair[0]) * rows.scale[r], factors[2 * i], low(bias_pairs[i])),
                                     fmaf(float(pair[1]) * rows.scale[r], factors[2 * i + 1], high(bias_pairs[i])));
        }
    }
  }

  __device__ void slot(int n) {
    if constexpr (!kGelu) return store(n);
    if (n < kBlocks) return apply_gelu(n);
    if (n == kBlocks) find_scales();
#pragma unroll
    for (int block = 2 * (n - kBlocks); block < min(2 * (n - kBlocks) + 2, kBlocks); ++block) store(block);
  }

  static __device__ uint32_t pair_of(float a, float b) {
    if constexpr (!kGelu) return pack(a, b);
    const __half2 pair = __floats2half2_rn(a, b);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  __device__ bool live(int r) const { return row + 8 * r < p.rows; }
  __device__ __half2& half(int block, int r, int i) { return reinterpret_cast<__half2&>(run[block][r][i]); }

  __device__ void apply_gelu(int block) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int i = 0; i < kRun / 2; ++i) {
        half(block, r, i) = gelu(half(block, r, i));
        largest[r] = __hmax2_nan(largest[r], __habs2(half(block, r, i)));
      }
  }

  __device__ void find_scales() {
    const auto larger = [](__half2 a, __half2 b) { return __hmax2_nan(a, b); };
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      scale[r] = HalfScale(quad_reduce(largest[r], larger));
      if (lane % 4 == 0 && live(r) && column < p.columns)
        p.out_scale[int64_t(column / C::kColumns) * p.rows + row + 8 * r] = scale[r].scale;
    }
  }

  __device__ void store(int block) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (kGelu) {
        store_run<uint2>(
            block, r,
            {scale[r].pack(half(block, r, 0), half(block, r, 1)), scale[r].pack(half(block, r, 2), half(block, r, 3))});
      } else {
        const auto& pairs = run[block][r];
        store_run<uint4>(block, r, {pairs[0], pairs[1], pairs[2], pairs[3]});
      }
    }
  }

  // Stores this thread's run of `block` in row r. A tile may end beyond the last column, by whole blocks.
  template <class Run>
  __device__ void store_run(int block, int r, Run run) const {
    constexpr int kSize = sizeof(Run) / kRun;
    const int64_t start = int64_t(row + 8 * r) * p.columns + column + 32 * block + lane % 4 * kRun;
    if (live(r) && column + 32 * block < p.columns)
      *reinterpret_cast<Run*>(static_cast<uint8_t*>(p.out) + start * kSize) = run;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// A consumer: one warpgroup.

template <class C>
struct Consumer {
  static constexpr bool kGroups = C::kScale == Scale::kGroup;
  using Sums = int32_t[C::kSums];

  const Params& p;
  Shared<C>& s;
  const int index;  // among the consumers
  const int lane = threadIdx.x % 32;
  typename Shared<C>::Stages::State state;
  typename Shared<C>::Tiles::State tiles;
  int last = C::kStages;          // the stage that products in flight read; at first none: the spare barrier
  uint32_t turn = index ? 0 : 1;  // parity of the phase that ends as this one's turn begins; consumer 0 begins
  Sums acc[C::kAccumulators];
  float total[kGroups ? C::kSums : 1];

  __device__ void run() {
    Epilogue<C> epilogue(p);
    for_each_tile<C>(p, [&](const WorkTile& tile) {
      const ThreadRows<C> rows(p, tile, index);
      if constexpr (kGroups) {
        multiply_groups(rows);
        take(epilogue, total, tile, rows);
        finish(epilogue);
      } else {
        multiply(epilogue);
        take(epilogue, acc[0], tile, rows);
      }
    });
    if (!kGroups) finish(epilogue);
  }

  static __device__ void finish(Epilogue<C>& epilogue) {
#pragma unroll
    for (int n = 0; n < Epilogue<C>::kSlots; ++n) epilogue.slot(n);
  }

  // Issues the products of one stage.
  template <bool kFirst>
  __device__ void issue(Sums& sums) {
    const auto& stage = s.stage[state.stage];
    const uint64_t a = sm90::swizzled_descriptor(stage.x + index * kConsumerRows * kStep);
    const uint64_t b = sm90::swizzled_descriptor(stage.weight);
    sm90::pin(sums);
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kStep / 32; ++i) {
      kFirst&& i == 0 ? sm90::mma_ss<int8_t, C::kColumns, false>(sums, a, b)
                      : sm90::mma_ss<int8_t, C::kColumns>(sums, a + 2 * i, b + 2 * i);
    }
    sm90::mma_commit();
  }

  // Returns while these products are under way, and all before them are done.
  __device__ void step(Sums& sums, bool first) {
    s.stages.wait(state);
    first ? issue<true>(sums) : issue<false>(sums);
    sm90::mma_wait<1>();
    release();
    last = state.stage;
    state.advance();
  }

  __device__ void finish_products() {
    sm90::mma_wait<0>();
    release();
    last = C::kStages;
  }

  // In all CTAs of the cluster: each fills a part of the others' stages.
  __device__ void release() {
    if (lane < kCluster) sm90::remote_release(sm90::remote_address(&s.stages.empty[last], lane));
  }

  // The epilogue is the tile's before.
  __device__ void multiply(Epilogue<C>& epilogue) {
    constexpr int kSlots = Epilogue<C>::kSlots;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (i < p.steps) step(acc[0], i == 0);
      epilogue.slot(i);
    }
#pragma unroll 1
    for (int i = kSlots; i < p.steps; ++i) step(acc[0], false);
    finish_products();
    sm90::pin(acc[0]);
  }

  __device__ void multiply_groups(const ThreadRows<C>& rows) {
#pragma unroll
    for (float& x : total) x = 0;
    GroupScales scales(p, rows);
    if constexpr (C::kAccumulators == 1) {
      multiply_in_turns(scales);
    } else {
      multiply_in_pairs(scales);
    }
  }

  // One consumer multiplies a group while the other converts its own; the turn passes while the last products are under
  // way. Not where a group is longer than the ring of stages: its end needs stages that the other has yet to release.
  __device__ void multiply_in_turns(GroupScales& scales) {
    const bool turns = p.group_steps <= C::kStages;
#pragma unroll 1
    for (int first = 0; first < p.steps; first += p.group_steps) {
      scales.load();
      if (turns) begin_turn();
#pragma unroll 1
      for (int i = 0; i < p.group_steps; ++i) step(acc[0], i == 0);
      if (turns) end_turn();
      finish_group(acc[0], scales);
    }
  }
  __device__ void begin_turn() {
    s.turn[index].wait(turn);
    turn ^= 1;
  }
  __device__ void end_turn() {
    __syncwarp();  // all lanes have begun
    if (lane == 0) s.turn[1 - index].arrive();
  }

  // A group is converted while the next one is multiplied into the other accumulator.
  __device__ void multiply_in_pairs(GroupScales& scales) {
    auto &even = acc[0], &odd = acc[1];
    const auto next_group = [&](Sums& sums, Sums& before) {
      step(sums, true);
      add(before, scales);
      scales.load();
      multiply_rest(sums);
    };
    scales.load();
    step(even, true);
    multiply_rest(even);
    int left = p.steps / p.group_steps - 1;
#pragma unroll 1
    for (; left > 1; left -= 2) next_group(odd, even), next_group(even, odd);
    if (left) {
      next_group(odd, even);
      finish_group(odd, scales);
    } else {
      finish_group(even, scales);
    }
  }
  __device__ void multiply_rest(Sums& sums) {
#pragma unroll 1
    for (int i = 1; i < p.group_steps; ++i) step(sums, false);
  }

  __device__ void finish_group(Sums& sums, const GroupScales& scales) {
    finish_products();
    add(sums, scales);
  }
  __device__ void add(Sums& sums, const GroupScales& scales) {
    sm90::pin(sums);
#pragma unroll
    for (int i = 0; i < C::kSums; ++i) total[i] = fmaf(float(sums[i]), scales.scale[i / 2 % 2], total[i]);
  }

  template <class T>
  __device__ void take(Epilogue<C>& epilogue, const T& sums, const WorkTile& tile, const ThreadRows<C>& rows) {
    s.tiles.wait(tiles);
    const Columns<C>& columns = s.columns[tiles.stage];
    epilogue.take(sums, tile, rows, columns.scale, columns.bias);
    __syncwarp();  // all lanes have read
    s.tiles.release(tiles.stage, lane);
    tiles.advance();
  }
};

template <class C>
__global__ void __launch_bounds__(sm90::kThreads, 1)
    int8_linear_kernel(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                       const __grid_constant__ Params p) {
  Shared<C>& s = sm90::shared_memory<Shared<C>>();
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), warpgroup = warp / kWarpgroupWarps;
  if (threadIdx.x == 0) {
    if (sm90::shared_address(&s) % 1024) __trap();  // the swizzle is of addresses
    s.stages.init(kCluster * kConsumers * kWarpgroupWarps);
    s.tiles.init(kConsumers * kWarpgroupWarps);
    for (Barrier& turn : s.turn) turn.init(kWarpgroupWarps);
    sm90::fence_barrier_init();
    sm90::prefetch(x), sm90::prefetch(weight);
  }
  __syncthreads();
  sm90::cluster_meet();  // the other CTA may arrive at our barriers, and fill our stages
  if (warpgroup == 0) {
    sm90::reg_dealloc<sm90::kProducerRegisters>();
    if (warp == 0) Producer<C>{p, s, x, weight}.run();
  } else {
    sm90::reg_alloc<sm90::kConsumerRegisters>();
    Consumer<C>{p, s, warpgroup - 1}.run();
  }
  __syncwarp();
  sm90::cluster_meet();  // the other CTA may still arrive here
}

// By `clusters` at most.
template <class C>
cudaError_t launch(const TensorMap& x, const TensorMap& weight, const Params& p, int clusters, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<C>);
  static_assert(kBytes <= kSharedBytes);
  const auto kernel = int8_linear_kernel<C>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kCluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = kCluster * std::min(p.tiles.sets(), clusters);
  config.blockDim = sm90::kThreads;
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, x, weight, p);
}
}  // namespace longlive::linear
