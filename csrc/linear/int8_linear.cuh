#pragma once
// x weight^T of int8 matrices on Hopper's tensor cores, with scales, bias and GELU in the epilogue.
//
// Warp-specialised and persistent, in clusters of CTAs whose tiles share their weights (tiles.h). One producer warp
// loads tiles of x and weight by TMA, its part of the weights for all CTAs; two consumer warpgroups of 64 rows each
// multiply.
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

template <Scale scale, Result result, int columns, int stages>
struct Config {
  static constexpr Scale kScale = scale;
  static constexpr Result kResult = result;
  static constexpr int kColumns = columns, kStages = stages, kSums = columns / 2;
  static constexpr int kXBytes = kTileRows * kStep;
  static constexpr int kPart = columns / kCluster;  // of the weights, which a CTA loads for all
  static constexpr int kPartBytes = kPart * kStep, kWeightBytes = columns * kStep;
  using Sum = std::conditional_t<scale == Scale::kRow, int32_t, float>;
  static_assert(kPartBytes % 1024 == 0 && columns % 32 == 0);
  static_assert(stages > 1);  // one is released while the next is multiplied
};

// What is launched, with as many stages as shared memory holds.
template <int columns>
using Rows = Config<Scale::kRow, Result::kPlain, columns, 5>;  // 192 or 224 columns
template <int columns>
using Groups = Config<Scale::kGroup, Result::kPlain, columns, columns == 160 ? 6 : 7>;  // 128 or 160
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
// The epilogue of a consumer's half of a tile. A thread has two rows, lane / 4 of its warp's 16 and 8 below it. Of each
// 32 columns it has those that the instruction numbers 8 i + 2 (lane % 4) + j: packed weights make them 8 (lane % 4) +
// 2 i + j, eight in a run.

template <class C>
struct Epilogue {
  static constexpr int kBlocks = C::kColumns / 32, kRun = 8;
  using Sums = typename C::Sum[C::kSums];

  const Params& p;
  const WorkTile& tile;
  const int lane = threadIdx.x % 32;
  const int first_row;  // of this thread
  float x_scale[2];

  __device__ Epilogue(const Params& p, const WorkTile& tile, int consumer)
      : p(p),
        tile(tile),
        first_row(tile.row + consumer * kConsumerRows + int(threadIdx.x) / 32 % kWarpgroupWarps * kWarpRows +
                  lane / 4) {
#pragma unroll
    for (int r = 0; r < 2; ++r) x_scale[r] = C::kScale == Scale::kRow && live(r) ? __ldg(p.x_scale + row(r)) : 1.f;
  }

  __device__ int row(int r) const { return first_row + 8 * r; }
  __device__ bool live(int r) const { return row(r) < p.rows; }
  __device__ int in_tile(int block) const { return 32 * block + lane % 4 * kRun; }  // this thread's first column
  // Of the i-th value of a run among a thread's sums.
  static constexpr int at(int block, int r, int i) { return 16 * block + i / 2 * 4 + 2 * r + i % 2; }

  // `scale` and `bias` are those of the tile's columns.
  __device__ void run(Sums& sums, const float* scale, const bf16* bias) const {
    if constexpr (C::kResult == Result::kPlain) {
      store(sums, scale, bias);
    } else {
      store_gelu(sums, scale, bias);
    }
  }

  // This thread's run of `block` in both rows, scaled and with its bias.
  __device__ void values(const Sums& sums, const float* scale, const bf16* bias, int block, float (&y)[2][kRun]) const {
    const float4* scales = reinterpret_cast<const float4*>(scale + in_tile(block));
    const float4 s = scales[0], t = scales[1];
    const float factors[kRun] = {s.x, s.y, s.z, s.w, t.x, t.y, t.z, t.w};
    const uint4 biases = *reinterpret_cast<const uint4*>(bias + in_tile(block));
    const uint32_t pairs[kRun / 2] = {biases.x, biases.y, biases.z, biases.w};
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int i = 0; i < kRun; ++i)
        y[r][i] =
            fmaf(float(sums[at(block, r, i)]) * x_scale[r], factors[i], i % 2 ? high(pairs[i / 2]) : low(pairs[i / 2]));
  }

  __device__ void store(const Sums& sums, const float* scale, const bf16* bias) const {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float y[2][kRun];
      values(sums, scale, bias, block, y);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        store_run<uint4>(
            block, r, {pack(y[r][0], y[r][1]), pack(y[r][2], y[r][3]), pack(y[r][4], y[r][5]), pack(y[r][6], y[r][7])});
    }
  }

  // GELU's results, in pairs, take the place of the sums: registers are short.
  __device__ void store_gelu(Sums& sums, const float* column_scale, const bf16* bias) const {
    __half2 largest[2] = {__float2half2_rn(0), __float2half2_rn(0)};
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float y[2][kRun];
      values(sums, column_scale, bias, block, y);
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int i = 0; i < kRun; i += 2) {
          const __half2 pair = gelu(__floats2half2_rn(y[r][i], y[r][i + 1]));
          largest[r] = __hmax2_nan(largest[r], __habs2(pair));
          sums[at(block, r, i)] = reinterpret_cast<const int&>(pair);
        }
    }
    const auto larger = [](__half2 a, __half2 b) { return __hmax2_nan(a, b); };
    const HalfScale scale[2] = {HalfScale(quad_reduce(largest[0], larger)), HalfScale(quad_reduce(largest[1], larger))};
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (lane % 4 == 0 && live(r)) p.out_scale[int64_t(tile.column / C::kColumns) * p.rows + row(r)] = scale[r].scale;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const auto pair = [&](int i) { return reinterpret_cast<const __half2&>(sums[at(block, r, i)]); };
        store_run<uint2>(block, r, {scale[r].pack(pair(0), pair(2)), scale[r].pack(pair(4), pair(6))});
      }
  }

  // Stores this thread's run of `block` in row r. A tile may end beyond the last column, by whole blocks.
  template <class Run>
  __device__ void store_run(int block, int r, Run run) const {
    constexpr int kSize = sizeof(Run) / kRun;
    const int64_t start = int64_t(row(r)) * p.columns + tile.column;
    if (live(r) && tile.column + 32 * block < p.columns)
      *reinterpret_cast<Run*>(static_cast<uint8_t*>(p.out) + (start + in_tile(block)) * kSize) = run;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// A consumer: one warpgroup.

template <class C>
struct Consumer {
  static constexpr bool kGroups = C::kScale == Scale::kGroup;

  const Params& p;
  Shared<C>& s;
  const int index;  // among the consumers
  const int lane = threadIdx.x % 32;
  typename Shared<C>::Stages::State state;
  typename Shared<C>::Tiles::State tiles;
  int last = C::kStages;  // the stage that products in flight read; at first none: the spare barrier
  int32_t acc[C::kSums];
  float total[kGroups ? C::kSums : 1];

  __device__ void run() {
    for_each_tile<C>(p, [&](const WorkTile& tile) {
      const Epilogue<C> epilogue(p, tile, index);
      if constexpr (kGroups) {
        multiply_groups(epilogue);
        finish(epilogue, total);
      } else {
        multiply();
        finish(epilogue, acc);
      }
    });
  }

  // Issues the products of one stage.
  template <bool kFirst>
  __device__ void issue() {
    const auto& stage = s.stage[state.stage];
    const uint64_t a = sm90::swizzled_descriptor(stage.x + index * kConsumerRows * kStep);
    const uint64_t b = sm90::swizzled_descriptor(stage.weight);
    sm90::pin(acc);
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kStep / 32; ++i) {
      kFirst&& i == 0 ? sm90::mma_ss<int8_t, C::kColumns, false>(acc, a, b)
                      : sm90::mma_ss<int8_t, C::kColumns>(acc, a + 2 * i, b + 2 * i);
    }
    sm90::mma_commit();
  }

  __device__ void step(bool first) {
    s.stages.wait(state);
    first ? issue<true>() : issue<false>();
    sm90::mma_wait<1>();
    release();
    last = state.stage;
    state.advance();
  }

  __device__ void finish_products() {
    sm90::mma_wait<0>();
    sm90::pin(acc);
    release();
    last = C::kStages;
  }

  // In all CTAs of the cluster: each fills a part of the others' stages.
  __device__ void release() {
    if (lane < kCluster) sm90::remote_release(sm90::remote_address(&s.stages.empty[last], lane));
  }

  __device__ void multiply() {
#pragma unroll 1
    for (int i = 0; i < p.steps; ++i) step(i == 0);
    finish_products();
  }

  __device__ void multiply_groups(const Epilogue<C>& epilogue) {
#pragma unroll
    for (float& x : total) x = 0;
    const int rows[2] = {min(epilogue.row(0), p.rows - 1), min(epilogue.row(1), p.rows - 1)};
    const float* scales = p.x_scale;
#pragma unroll 1
    for (int first = 0; first < p.steps; first += p.group_steps, scales += p.rows) {
      const float scale[2] = {__ldg(scales + rows[0]), __ldg(scales + rows[1])};
#pragma unroll 1
      for (int i = 0; i < p.group_steps; ++i) step(i == 0);
      finish_products();
#pragma unroll
      for (int i = 0; i < C::kSums; ++i) total[i] = fmaf(float(acc[i]), scale[i / 2 % 2], total[i]);
    }
  }

  template <class Sums>
  __device__ void finish(const Epilogue<C>& epilogue, Sums& sums) {
    s.tiles.wait(tiles);
    const Columns<C>& columns = s.columns[tiles.stage];
    epilogue.run(sums, columns.scale, columns.bias);
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
