#pragma once
// Convolutions of the video autoencoder as implicit GEMM on Hopper's tensor cores; the epilogue adds bias, norm and
// SiLU before anything is stored. See geometry.h for the order of the work.
//
// Activations are [frames, C / 8, H, W, 8] bfloat16: eight consecutive pixels of a group of channels are 128 bytes in
// memory, in shared memory, and as wgmma reads them, so that a tap is a start address. One producer warp loads; two
// consumer warpgroups multiply, each its subtiles of the work tile. The second starts a few stages late and keeps that
// lag: while one is in its epilogue, the other has the tensor cores.
#include <cuda_runtime.h>

#include <numbers>

#include "common/bf16.cuh"
#include "common/math.cuh"
#include "common/reduce.cuh"
#include "common/sm90/cluster.cuh"
#include "common/sm90/pipeline.cuh"
#include "common/sm90/registers.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"
#include "conv/geometry.h"

namespace longlive::conv {
using sm90::kConsumers;
using sm90::kWarpgroupWarps;

// Frames [C / 8, H, W, 8] in memory, in any order.
struct Frames {
  bf16* data;          // null: there are none
  const int* indices;  // of the frames to write
};

struct Params {
  // Indices of the frames of the input, history first, and of the residual; outside of the tensor: frames of zeros.
  const int *inputs, *residuals;
  const bf16* weight;  // parts, each a stream of stages
  int64_t part_size;   // elements
  const float* bias;   // [C]; [2, C] where frames are doubled
  const float* gain;   // [C], with act
  Frames raw, act;
  void* pixels;  // [frames, H, W, 3], with N = kPixelChannels: bytes or bfloat16
  bool as_bytes;
  WorkTiles tiles;
  int height, width;  // of the input
  int channels;       // C, of the output
  int slices, chunks, residual_chunks;
  float eps;
};

template <class C>
struct alignas(128) Shared {
  using Patches = sm90::Pipeline<C::kPatches, 1>;
  using Weights = sm90::Pipeline<C::kStages, 1>;

  struct alignas(128) Patch {
    uint8_t bytes[C::kPatchBytes];  // [groups of channels, rows, columns, 8]
  };
  struct alignas(128) Weight {
    uint8_t bytes[C::kStageBytes];  // [taps, groups of channels, N, 8]
  };
  Patch patch[C::kPatches];
  Weight weight[C::kStages];
  // From the other CTA of the cluster; two buffers, used in alternation.
  float squares[2][kConsumers][C::kClusterNorm ? C::kSubtiles : 1][kSide * kSide];
  Patches patches;
  Weights weights;
  sm90::Barrier squares_full[2][kConsumers];
};

// ---------------------------------------------------------------------------------------------------------------------
// Producer: one warp. All its lanes run the loop, so that the state is uniform; the first one issues.

template <class C>
struct Producer {
  const Params& p;
  Shared<C>& s;
  const sm90::TensorMap &input, &residual;
  const bool issues = threadIdx.x % 32 == 0;
  typename Shared<C>::Patches::State patch;
  typename Shared<C>::Weights::State weight;

  __device__ void run() {
#pragma unroll 1
    for (int i = blockIdx.x; i < p.tiles.count(); i += gridDim.x) {
      const WorkTile tile = p.tiles[i];
      const bf16* from = p.weight + (tile.result * p.tiles.channel_parts + tile.channels) * p.part_size;
#pragma unroll 1
      for (int slice = 0; slice < p.slices; ++slice) {
        const auto origin = C::origin(slice, tile.result);
        const int frame = p.inputs[tile.frame + origin.frame];
#pragma unroll 1
        for (int chunk = 0; chunk < p.chunks; ++chunk) {
          load_patch(input, tile.x + origin.x, tile.y + origin.y, chunk, frame);
#pragma unroll 1
          for (int stage = 0; stage < C::kStagesPerPatch; ++stage) from = load_weight(from);
        }
      }
#pragma unroll 1
      for (int chunk = 0; chunk < p.residual_chunks; ++chunk) {
        load_patch(residual, tile.x + C::kCentreX, tile.y + C::kCentreY, chunk, p.residuals[tile.frame]);
        from = load_weight(from);
      }
    }
  }

  __device__ void load_patch(const sm90::TensorMap& map, int x, int y, int chunk, int frame) {
    s.patches.acquire(patch);
    if (issues) {
      sm90::Barrier& full = s.patches.full[patch.stage];
      full.arrive_and_expect(C::kPatchBytes);
      sm90::load_tile(s.patch[patch.stage].bytes, map, full, x * kGroup, y, chunk * (kChunk / kGroup), frame);
    }
    patch.advance();
  }

  __device__ const bf16* load_weight(const bf16* from) {
    s.weights.acquire(weight);
    if (issues) {
      sm90::Barrier& full = s.weights.full[weight.stage];
      full.arrive_and_expect(C::kStageBytes);
      sm90::load_bytes(s.weight[weight.stage].bytes, from, C::kStageBytes, full);
    }
    weight.advance();
    return from + C::kStageBytes / sizeof(bf16);
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Consumer: a warpgroup. Of each of its subtiles, a thread has pixel lane / 4 of rows 2 warp and 2 warp + 1, and of
// each group of channels the pair lane % 4: accumulator 4 g + 2 r + j is row r, group g, channel 2 (lane % 4) + j.

// x / (1 + exp(-x))
__device__ inline float silu(float x) { return x * reciprocal(1 + exp2(x * -std::numbers::log2e_v<float>)); }

template <class C>
struct Consumer {
  static constexpr int N = C::N, kGroups = N / kGroup, kSubtiles = C::kSubtiles;

  const Params& p;
  Shared<C>& s;
  const int index;  // of the warpgroup, among the consumers
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kWarpgroupWarps;
  typename Shared<C>::Patches::State patch;
  typename Shared<C>::Weights::State weight;
  uint32_t exchanges = 0;
  float acc[kSubtiles][N / 2];

  __device__ void run() {
    if (index == 1) wait_for_lag();
#pragma unroll 1
    for (int i = blockIdx.x; i < p.tiles.count(); i += gridDim.x) {
      multiply();
      sm90::pin(i);  // the work tile is computed here, not beforehand: registers are short
      epilogue(p.tiles[i]);
    }
  }

  __device__ void wait_for_lag() {
    const int stages = p.slices * p.chunks * C::kStagesPerPatch;
    if (int(blockIdx.x) < p.tiles.count()) s.weights.full[min(C::kLag, stages - 1)].wait(0);
  }

  __device__ void multiply() {
#pragma unroll
    for (int i = 0; i < kSubtiles; ++i) {
#pragma unroll
      for (float& x : acc[i]) x = 0;
      sm90::pin(acc[i]);
    }
    // The stages that products in flight read; at first none, which is what the spare barriers stand for.
    int last_patch = C::kPatches, last_weight = C::kStages;
#pragma unroll 1
    for (int i = p.slices * p.chunks + p.residual_chunks; i > 0; --i) {
      const bool is_residual = C::kTapsPerStage == 1 && i <= p.residual_chunks;
      const int stages = is_residual ? 1 : C::kStagesPerPatch;
      s.patches.wait(patch);
      const uint64_t a = sm90::plain_descriptor(s.patch[patch.stage].bytes, C::kGroupBytes, C::kPitch);
#pragma unroll 1
      for (int stage = 0; stage < stages; ++stage) {
        s.weights.wait(weight);
        const uint64_t b = sm90::plain_descriptor(s.weight[weight.stage].bytes, N * 16, kSide * 16);
        sm90::mma_fence();
#pragma unroll
        for (int t = 0; t < C::kTapsPerStage; ++t) {
          const int tap = is_residual ? C::kCentre : stage * C::kTapsPerStage + t;
          // In 16 bytes, the unit of descriptors.
          const int start = tap / C::kTapsX * C::kPatchColumns + tap % C::kTapsX;
#pragma unroll
          for (int k = 0; k < kChunk / 16; ++k)
#pragma unroll
            for (int j = 0; j < kSubtiles; ++j)
              sm90::mma_ss<bf16, N>(acc[j], a + start + start_of(j) + k * 2 * C::kGroupBytes / 16,
                                    b + (t * kChunk / kGroup + k * 2) * N);
        }
        sm90::mma_commit();
        sm90::mma_wait<1>();
        s.weights.release(last_weight, lane);
        if (stage == 0) s.patches.release(last_patch, lane);
        last_weight = weight.stage;
        weight.advance();
      }
      last_patch = patch.stage;
      patch.advance();
    }
    sm90::mma_wait<0>();
#pragma unroll
    for (int i = 0; i < kSubtiles; ++i) sm90::pin(acc[i]);
    s.weights.release(last_weight, lane);
    s.patches.release(last_patch, lane);
  }

  // Of subtile i, as wgmma starts reading it; a work tile has two columns of subtiles.
  __device__ int start_of(int i) const {
    const int subtile = index * kSubtiles + i;
    return subtile / 2 * kSide * C::kPatchColumns + subtile % 2 * kSide;
  }

  // This thread's two pixels of a subtile.
  struct Pixels {
    int frame, at[2];  // of the output
    bool live[2];
  };
  __device__ Pixels pixels(const WorkTile& tile, int i) const {
    const int subtile = index * kSubtiles + i;
    const int x = tile.x + subtile % 2 * kSide + lane / 4;
    Pixels pixels;
    pixels.frame = tile.frame;
    if constexpr (C::kKind == Kind::kPoint)
      pixels.frame = tile.frame * (p.tiles.parts / p.tiles.channel_parts) + tile.result;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int y = tile.y + subtile / 2 * kSide + 2 * warp + r;
      pixels.live[r] = y < p.height && x < p.width;
      pixels.at[r] =
          C::kKind == Kind::kUp ? (2 * y + tile.result / 2) * 2 * p.width + 2 * x + tile.result % 2 : y * p.width + x;
    }
    return pixels;
  }

  // Writes this thread's pixels, one group of channels after the other.
  struct Writer {
    bf16* to[2];
    int plane;  // elements of a group
    bool live[2];

    __device__ Writer(const Consumer& c, const Frames& t, const WorkTile& tile, const Pixels& pixels)
        : plane(c.p.height * c.p.width * (C::kKind == Kind::kUp ? 4 : 1) * kGroup) {
      bf16* start = t.data;
      if (start)
        start += (int64_t(t.indices[pixels.frame]) * (c.p.channels / kGroup) + tile.channels * kGroups) * plane;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        to[r] = start + pixels.at[r] * kGroup + c.lane % 4 * 2;
        live[r] = start && pixels.live[r];
      }
    }
    __device__ void put(int r, uint32_t pair) {
      if (live[r]) sm90::store(to[r], pair);
    }
    __device__ void next_group() {
      to[0] += plane, to[1] += plane;
      for (bf16*& address : to) sm90::pin(address);  // else all are computed beforehand: registers are short
    }
  };

  __device__ void epilogue(const WorkTile& tile) {
    uint32_t y[kSubtiles][2][kGroups];
    float squares[kSubtiles][2];
    if constexpr (N == kPixelChannels) {
      store_pixels(tile);
    } else if constexpr (C::kClusterNorm) {
#pragma unroll
      for (int i = 0; i < kSubtiles; ++i) store_raw(tile, i, y[i], squares[i]);
      if (!p.act.data) return;
      if (p.tiles.channel_parts == 2) add_other_half(squares);
#pragma unroll
      for (int i = 0; i < kSubtiles; ++i) store_act(tile, i, y[i], squares[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kSubtiles; ++i) {
        store_raw(tile, i, y[i], squares[i]);
        if (p.act.data) store_act(tile, i, y[i], squares[i]);
      }
    }
  }

  // A value per channel: those of a few groups, loaded one batch ahead of their use, since registers are short.
  static constexpr int kBatch = 2;
  static_assert(kGroups % kBatch == 0);
  struct PerChannel {
    const float2* from;
    float2 now[kBatch], next[kBatch];

    __device__ explicit PerChannel(const float* x) : from(reinterpret_cast<const float2*>(x) + threadIdx.x % 4) {
      load();
    }
    __device__ void load() {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) next[i] = sm90::load_in_order(from + i * (kGroup / 2));
      from += kBatch * (kGroup / 2);
    }
    // To the batch that begins with this group.
    __device__ void advance(int group) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) now[i] = next[i];
      if (group + kBatch < kGroups) load();
    }
  };

  // y = accumulator + bias, and the sum of its squares over the pixel's channels.
  __device__ void store_raw(const WorkTile& tile, int i, uint32_t (&y)[2][kGroups], float (&squares)[2]) {
    Writer raw(*this, p.raw, tile, pixels(tile, i));
    const int part = (C::kKind == Kind::kPoint ? tile.result * p.tiles.channel_parts : 0) + tile.channels;
    PerChannel bias(p.bias + part * N);
    squares[0] = squares[1] = 0;
#pragma unroll
    for (int first = 0; first < kGroups; first += kBatch) {
      bias.advance(first);
#pragma unroll
      for (int g = first; g < first + kBatch; ++g) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          // Precision: float32 up to here, rounded once; the norm reads it rounded, as the published order does.
          const float* sum = acc[i] + 4 * g + 2 * r;
          const uint32_t value = pack(sum[0] + bias.now[g - first].x, sum[1] + bias.now[g - first].y);
          raw.put(r, value);
          squares[r] = fmaf(low(value), low(value), fmaf(high(value), high(value), squares[r]));
          y[r][g] = value;
        }
        raw.next_group();
      }
    }
#pragma unroll
    for (float& x : squares) x = quad_sum(x);  // four lanes share a pixel
  }

  // The other CTA of the cluster has the other half of the channels. Two buffers suffice, each with a barrier: a CTA
  // sends for tile n only after it has received the other's squares of tile n - 1, which the other sends after it has
  // read its buffer of tile n - 2.
  __device__ void add_other_half(float (&squares)[kSubtiles][2]) {
    const uint32_t other = sm90::cluster_rank() ^ 1, buffer = exchanges & 1, phase = exchanges++ >> 1 & 1;
#pragma unroll
    for (int i = 0; i < kSubtiles; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (lane % 4 == 0)
          sm90::remote_store(sm90::remote_address(&s.squares[buffer][index][i][in_subtile(r)], other), squares[i][r]);
    __syncwarp();
    if (lane == 0) sm90::remote_arrive(sm90::remote_address(&s.squares_full[buffer][index], other));
    sm90::wait_for_cluster(s.squares_full[buffer][index], phase);
#pragma unroll
    for (int i = 0; i < kSubtiles; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) squares[i][r] += s.squares[buffer][index][i][in_subtile(r)];
  }
  __device__ int in_subtile(int r) const { return (2 * warp + r) * kSide + lane / 4; }

  // SiLU(norm(y)) over the pixel's channels.
  __device__ void store_act(const WorkTile& tile, int i, const uint32_t (&y)[2][kGroups], const float (&squares)[2]) {
    Writer act(*this, p.act, tile, pixels(tile, i));
    PerChannel gain(p.gain + tile.channels * N);
    float scale[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) scale[r] = rsqrtf(squares[r] / float(p.channels) + p.eps);
#pragma unroll
    for (int first = 0; first < kGroups; first += kBatch) {
      gain.advance(first);
      uint32_t values[kBatch][2];  // all before any is stored: many at once, for the latency of each
#pragma unroll
      for (int g = 0; g < kBatch; ++g)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          // Precision: float32, rounded once; the published order rounds the norm, too.
          const uint32_t pair = y[r][first + g];
          values[g][r] = pack(silu(low(pair) * scale[r] * gain.now[g].x), silu(high(pair) * scale[r] * gain.now[g].y));
        }
#pragma unroll
      for (int g = 0; g < kBatch; ++g) {
        act.put(0, values[g][0]), act.put(1, values[g][1]);
        act.next_group();
      }
    }
  }

  // Three channels of a pixel, rounded to bfloat16; as bytes, trunc(255 clamp(x / 2 + 1/2, 0, 1)) of that.
  __device__ void store_pixels(const WorkTile& tile) {
    const float2 bias = __ldg(reinterpret_cast<const float2*>(p.bias) + lane % 4);
#pragma unroll
    for (int i = 0; i < kSubtiles; ++i) {
      const Pixels to = pixels(tile, i);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t mine = pack(acc[i][2 * r] + bias.x, acc[i][2 * r + 1] + bias.y);
        const uint32_t next = __shfl_down_sync(0xffffffffu, mine, 1);
        if (lane % 4 != 0 || !to.live[r]) continue;
        const int64_t at = (int64_t(to.frame) * p.height * p.width + to.at[r]) * 3;
        const float rgb[3] = {low(mine), high(mine), low(next)};
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          if (p.as_bytes) {
            static_cast<uint8_t*>(p.pixels)[at + c] = uint8_t(255 * __saturatef(fmaf(rgb[c], 0.5f, 0.5f)));
          } else {
            static_cast<bf16*>(p.pixels)[at + c] = __float2bfloat16_rn(rgb[c]);
          }
        }
      }
    }
  }
};

// All threads of a CTA.
template <class C>
__device__ void convolve(const sm90::TensorMap& input, const sm90::TensorMap& residual, const Params& p, Shared<C>& s) {
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), warpgroup = warp / kWarpgroupWarps;
  if (threadIdx.x == 0) {
    sm90::prefetch(input);
    sm90::prefetch(residual);
    s.patches.init(kConsumers * kWarpgroupWarps);
    s.weights.init(kConsumers * kWarpgroupWarps);
    for (auto& both : s.squares_full)
      for (sm90::Barrier& full : both) full.init(kWarpgroupWarps);
    sm90::fence_barrier_init();
  }
  __syncthreads();
  sm90::cluster_sync();  // the other CTA may arrive at our barriers
  if (warpgroup == 0) {
    sm90::reg_dealloc<sm90::kProducerRegisters>();
    if (warp == 0) Producer<C>{p, s, input, residual}.run();
  } else {
    sm90::reg_alloc<sm90::kConsumerRegisters>();
    Consumer<C>{p, s, warpgroup - 1}.run();
  }
  __syncwarp();
  sm90::cluster_sync();  // the other CTA may still write here
}

// CTAs that share the norm of a pixel's channels.
inline int cluster_size(const Params& p) { return p.act.data && p.tiles.channel_parts == 2 ? 2 : 1; }

// Describes [frames, C / 8, H, W, 8], read in patches.
template <class C>
sm90::TensorMap patch_map(const bf16* data, int64_t frames, int64_t channels, int64_t height, int64_t width) {
  const auto groups = cuuint64_t(channels / kGroup), row = cuuint64_t(width * kGroup), rows = cuuint64_t(height);
  const cuuint64_t line = 2 * row;
  return sm90::tile_map<bf16, 4>(data, {row, rows, groups, cuuint64_t(frames)},
                                 {line, line * rows, line * rows * groups},
                                 {C::kPatchColumns * kGroup, C::kPatchRows, kChunk / kGroup, 1}, sm90::Swizzle::kNone);
}

template <class C>
__global__ void __launch_bounds__(sm90::kThreads, 1)
    causal_conv_kernel(const __grid_constant__ sm90::TensorMap input, const __grid_constant__ sm90::TensorMap residual,
                       const __grid_constant__ Params p) {
  convolve<C>(input, residual, p, sm90::shared_memory<Shared<C>>());
}

// Without a residual, its map is not used.
template <class C>
cudaError_t launch(const sm90::TensorMap& input, const sm90::TensorMap& residual, const Params& p, int processors,
                   cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<C>);
  static_assert(kBytes <= kSharedBytes);
  const auto kernel = causal_conv_kernel<C>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const int cluster = cluster_size(p);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = std::min(p.tiles.count(), processors / cluster * cluster);
  config.blockDim = sm90::kThreads;
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, input, residual, p);
}
}  // namespace longlive::conv
