#pragma once
// Convolutions of the video autoencoder as sums of matrix products on Hopper's tensor cores; bias, residual sum, norm
// and SiLU before anything is stored. See geometry.h for the order of the work.
//
// Activations are [frames, C / 8, H, W, 8] bfloat16: eight consecutive pixels of a group of channels are 128 bytes in
// memory, in shared memory, and as the tensor cores want them, so that a tap is a start address. One warp feeds; two
// warpgroups multiply, each its blocks of the tile. The second begins a few stages late, and stays so much behind:
// while one of them finishes its outputs, the other has the tensor cores.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "common/math.cuh"
#include "common/sm90/barrier.cuh"
#include "common/sm90/cluster.cuh"
#include "common/sm90/order.cuh"
#include "common/sm90/tma_tiles.cuh"
#include "common/sm90/wgmma_plain.cuh"
#include "conv/geometry.h"

namespace longlive::conv {
using bf16 = __nv_bfloat16;

constexpr int kWarpgroup = 128, kWarps = kWarpgroup / 32, kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kFeedRegisters = 24, kConsumeRegisters = 240;

// Frames [C / 8, H, W, 8] in memory, in any order.
struct Frames {
  bf16* data;         // null: there are none
  const int* places;  // of each
};

struct Params {
  // Places of the frames of the input, history first, and of what is added; outside of the tensor: frames of zeros.
  const int *inputs, *residuals;
  const bf16* weight;  // parts, each a stream of stages
  int64_t part_size;   // elements
  const float* bias;   // [C]; [2, C] where frames are doubled
  const float* gain;   // [C], with act
  Frames raw, act;
  void* pixels;        // [frames, H, W, 3], with N = kPixelChannels: bytes or bfloat16
  bool as_bytes;
  Items items;
  int height, width;   // of the input
  int channels;        // C, of the output
  int phases, chunks, residual_chunks;
  float eps;
};

template <int kStages>
struct Place {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

template <class C>
struct alignas(128) Shared {
  struct alignas(128) Patch {
    uint8_t bytes[C::kPatchBytes];  // [groups of channels, rows, columns, 8]
  };
  struct alignas(128) Stage {
    uint8_t bytes[C::kStageBytes];  // [taps, groups of channels, N, 8]
  };
  Patch patch[C::kPatches];
  Stage weight[C::kStages];
  float squares[2][kConsumers][C::kPairs ? C::kTiles : 1][kSide * kSide];  // from the other CTA, for every other item
  // The last barrier of either list of empty ones is of no stage, and none waits for it.
  sm90::Barrier patch_full[C::kPatches], patch_empty[C::kPatches + 1];
  sm90::Barrier weight_full[C::kStages], weight_empty[C::kStages + 1];
  sm90::Barrier squares_full[2][kConsumers];
};

// ---------------------------------------------------------------------------------------------------------------------
// Feeding: one warp, in all its lanes, so that what they have in common is kept once; the first one issues.

template <class C>
struct Feeder {
  const Params& p;
  Shared<C>& s;
  const sm90::TensorMap &input, &residual;
  const bool issues = threadIdx.x % 32 == 0;
  Place<C::kPatches> patch;
  Place<C::kStages> weight;

  __device__ void run() {
#pragma unroll 1
    for (int i = blockIdx.x; i < p.items.count(); i += gridDim.x) {
      const Item item = p.items[i];
      const bf16* from = p.weight + (item.rest * p.items.channel_parts + item.channels) * p.part_size;
#pragma unroll 1
      for (int phase = 0; phase < p.phases; ++phase) {
        const auto origin = C::origin(phase, item.rest);
        const int frame = p.inputs[item.frame + origin.frame];
#pragma unroll 1
        for (int chunk = 0; chunk < p.chunks; ++chunk) {
          load_patch(input, item.x + origin.x, item.y + origin.y, chunk, frame);
#pragma unroll 1
          for (int i = 0; i < C::kStagesPerPatch; ++i) from = load_weight(from);
        }
      }
#pragma unroll 1
      for (int chunk = 0; chunk < p.residual_chunks; ++chunk) {
        load_patch(residual, item.x + C::kCentreX, item.y + C::kCentreY, chunk, p.residuals[item.frame]);
        from = load_weight(from);
      }
    }
  }

  __device__ void load_patch(const sm90::TensorMap& map, int x, int y, int chunk, int frame) {
    s.patch_empty[patch.stage].wait(patch.parity ^ 1);
    __syncwarp();  // the first lane must not run ahead: a barrier that is a phase further looks like one not yet there
    if (issues) {
      s.patch_full[patch.stage].arrive_and_expect(C::kPatchBytes);
      sm90::load_tile(s.patch[patch.stage].bytes, map, x * kGroup, y, chunk * (kChunk / kGroup), frame,
                      s.patch_full[patch.stage]);
    }
    patch.advance();
  }

  __device__ const bf16* load_weight(const bf16* from) {
    s.weight_empty[weight.stage].wait(weight.parity ^ 1);
    __syncwarp();
    if (issues) {
      s.weight_full[weight.stage].arrive_and_expect(C::kStageBytes);
      sm90::load_bytes(s.weight[weight.stage].bytes, from, C::kStageBytes, s.weight_full[weight.stage]);
    }
    weight.advance();
    return from + C::kStageBytes / sizeof(bf16);
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Consuming: a warpgroup. Of each of its blocks, thread t has pixel lane / 4 of rows 2 warp and 2 warp + 1, of each
// group of channels the pair lane % 4: sums 4 g + 2 r + j are row r, group g, channel 2 (lane % 4) + j.

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
// bfloat16 is the upper half of float32.
__device__ inline float low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// x / (1 + exp(-x))
__device__ inline float silu(float x) { return x * reciprocal(1 + exp2(x * -1.4426950408889634f)); }

template <class C>
struct Consumer {
  static constexpr int N = C::N, kGroups = N / kGroup, kTiles = C::kTiles;

  const Params& p;
  Shared<C>& s;
  const int index;  // of the warpgroup, among the consumers
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kWarps;
  Place<C::kPatches> patch;
  Place<C::kStages> weight;
  uint32_t exchanges = 0;
  float sums[kTiles][N / 2];

  __device__ void run() {
    if (index == 1) start_late();
#pragma unroll 1
    for (int i = blockIdx.x; i < p.items.count(); i += gridDim.x) {
      multiply();
      sm90::pin(i);  // the item is worked out here, not beforehand: registers are short
      finish(p.items[i]);
    }
  }

  __device__ void start_late() {
    const int stages = p.phases * p.chunks * C::kStagesPerPatch;
    if (int(blockIdx.x) < p.items.count()) s.weight_full[min(C::kLate, stages - 1)].wait(0);
  }

  __device__ void multiply() {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (float& x : sums[i]) x = 0;
      sm90::pin(sums[i]);
    }
    int last_patch = C::kPatches, last_stage = C::kStages;  // those that products under way read; at first, none
#pragma unroll 1
    for (int i = p.phases * p.chunks + p.residual_chunks; i > 0; --i) {
      const bool is_residual = C::kTapsPerStage == 1 && i <= p.residual_chunks;
      const int stages = is_residual ? 1 : C::kStagesPerPatch;
      s.patch_full[patch.stage].wait(patch.parity);
      const uint64_t a = sm90::plain_descriptor(s.patch[patch.stage].bytes, C::kGroupBytes, C::kPitch);
#pragma unroll 1
      for (int stage = 0; stage < stages; ++stage) {
        s.weight_full[weight.stage].wait(weight.parity);
        const uint64_t b = sm90::plain_descriptor(s.weight[weight.stage].bytes, N * 16, kSide * 16);
        sm90::mma_fence();
#pragma unroll
        for (int t = 0; t < C::kTapsPerStage; ++t) {
          const int tap = is_residual ? C::kCentre : stage * C::kTapsPerStage + t;
          const int start = tap / C::kTapsX * C::kPatchColumns + tap % C::kTapsX;  // in 16 bytes, as the descriptors
#pragma unroll
          for (int k = 0; k < kChunk / 16; ++k)
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
              sm90::mma_plain<N>(sums[j], a + start + start_of(j) + k * 2 * C::kGroupBytes / 16,
                                 b + (t * kChunk / kGroup + k * 2) * N);
        }
        sm90::mma_commit();
        sm90::mma_wait<1>();
        release(s.weight_empty, last_stage);
        if (stage == 0) release(s.patch_empty, last_patch);
        last_stage = weight.stage;
        weight.advance();
      }
      last_patch = patch.stage;
      patch.advance();
    }
    sm90::mma_wait<0>();
#pragma unroll
    for (int i = 0; i < kTiles; ++i) sm90::pin(sums[i]);
    release(s.weight_empty, last_stage);
    release(s.patch_empty, last_patch);
  }

  template <int kCount>
  __device__ void release(sm90::Barrier (&empty)[kCount], int stage) {
    if (lane == 0) empty[stage].arrive();
  }

  __device__ int start_of(int tile) const {
    const int block = index * kTiles + tile;
    return block / 2 * kSide * C::kPatchColumns + block % 2 * kSide;
  }

  // Pixels of this thread: lane / 4 of two rows of a block.
  struct Spot {
    int frame, pixel[2];  // of the output
    bool live[2];
  };
  __device__ Spot spot(const Item& item, int tile) const {
    const int block = index * kTiles + tile;
    const int x = item.x + block % 2 * kSide + lane / 4;
    Spot spot;
    spot.frame = item.frame;
    if constexpr (C::kKind == Kind::kPoint)
      spot.frame = item.frame * (p.items.parts / p.items.channel_parts) + item.rest;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int y = item.y + block / 2 * kSide + 2 * warp + r;
      spot.live[r] = y < p.height && x < p.width;
      spot.pixel[r] = C::kKind == Kind::kUp ? (2 * y + item.rest / 2) * 2 * p.width + 2 * x + item.rest % 2
                                            : y * p.width + x;
    }
    return spot;
  }

  // Writes this thread's pixels, a group of channels after the other.
  struct Writer {
    bf16* to[2];
    int plane;  // elements of a group
    bool live[2];

    __device__ Writer(const Consumer& c, const Frames& t, const Item& item, const Spot& spot)
        : plane(c.p.height * c.p.width * (C::kKind == Kind::kUp ? 4 : 1) * kGroup) {
      bf16* start = t.data;
      if (start) start += (int64_t(t.places[spot.frame]) * (c.p.channels / kGroup) + item.channels * kGroups) * plane;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        to[r] = start + spot.pixel[r] * kGroup + c.lane % 4 * 2;
        live[r] = start && spot.live[r];
      }
    }
    __device__ void put(int r, uint32_t pair) {
      if (live[r]) sm90::store(to[r], pair);
    }
    __device__ void next_group() {
      to[0] += plane, to[1] += plane;
      for (bf16*& address : to) sm90::pin(address);  // or all of them are computed beforehand: registers are short
    }
  };

  __device__ void finish(const Item& item) {
    uint32_t y[kTiles][2][kGroups];
    float squares[kTiles][2];
    if constexpr (N == kPixelChannels) {
      store_pixels(item);
    } else if constexpr (C::kPairs) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) store_raw(item, i, y[i], squares[i]);
      if (!p.act.data) return;
      if (p.items.channel_parts == 2) add_other_half(squares);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) store_act(item, i, y[i], squares[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        store_raw(item, i, y[i], squares[i]);
        if (p.act.data) store_act(item, i, y[i], squares[i]);
      }
    }
  }

  // A value for each channel, of a few groups at once, and loaded that much ahead of their use: registers are short.
  static constexpr int kBatch = 2;
  static_assert(kGroups % kBatch == 0 || N == kPixelChannels);
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

  // y = sum + bias, and the sum of its squares over the pixel's channels.
  __device__ void store_raw(const Item& item, int tile, uint32_t (&y)[2][kGroups], float (&squares)[2]) {
    Writer raw(*this, p.raw, item, spot(item, tile));
    const int part = (C::kKind == Kind::kPoint ? item.rest * p.items.channel_parts : 0) + item.channels;
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
          const float* sum = sums[tile] + 4 * g + 2 * r;
          const uint32_t value = pack(sum[0] + bias.now[g - first].x, sum[1] + bias.now[g - first].y);
          raw.put(r, value);
          squares[r] = fmaf(low(value), low(value), fmaf(high(value), high(value), squares[r]));
          y[r][g] = value;
        }
        raw.next_group();
      }
    }
#pragma unroll
    for (float& x : squares) {  // four lanes share a pixel
      x += __shfl_xor_sync(0xffffffffu, x, 1);
      x += __shfl_xor_sync(0xffffffffu, x, 2);
    }
  }

  // The other half of the channels is with the other CTA of the cluster. What it sent for the last item but one has
  // been read by all before they sent for the last one, so two buffers do, each with a barrier.
  __device__ void add_other_half(float (&squares)[kTiles][2]) {
    const uint32_t other = sm90::cluster_rank() ^ 1, turn = exchanges & 1, parity = exchanges++ >> 1 & 1;
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (lane % 4 == 0)
          sm90::remote_store(sm90::remote_address(&s.squares[turn][index][i][pixel(r)], other), squares[i][r]);
    __syncwarp();
    if (lane == 0) sm90::remote_arrive(sm90::remote_address(&s.squares_full[turn][index], other));
    sm90::wait_for_cluster(s.squares_full[turn][index], parity);
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) squares[i][r] += s.squares[turn][index][i][pixel(r)];
  }
  __device__ int pixel(int r) const { return (2 * warp + r) * kSide + lane / 4; }

  // SiLU of the norm of y over the pixel's channels.
  __device__ void store_act(const Item& item, int tile, const uint32_t (&y)[2][kGroups], const float (&squares)[2]) {
    Writer act(*this, p.act, item, spot(item, tile));
    PerChannel gain(p.gain + item.channels * N);
    float scale[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) scale[r] = rsqrtf(squares[r] / float(p.channels) + p.eps);
#pragma unroll
    for (int first = 0; first < kGroups; first += kBatch) {
      gain.advance(first);
      uint32_t values[kBatch][2];  // all before any is stored: many at once, for the latency of each
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          // Precision: float32, rounded once; the published order rounds the norm, too.
          const uint32_t pair = y[r][first + i];
          values[i][r] = pack(silu(low(pair) * scale[r] * gain.now[i].x), silu(high(pair) * scale[r] * gain.now[i].y));
        }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        act.put(0, values[i][0]), act.put(1, values[i][1]);
        act.next_group();
      }
    }
  }

  // Three channels of a pixel, rounded to bfloat16; as bytes, trunc(255 clamp(x / 2 + 1/2, 0, 1)) of that.
  __device__ void store_pixels(const Item& item) {
    const float2 bias = __ldg(reinterpret_cast<const float2*>(p.bias) + lane % 4);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const Spot to = spot(item, i);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t mine = pack(sums[i][2 * r] + bias.x, sums[i][2 * r + 1] + bias.y);
        const uint32_t next = __shfl_down_sync(0xffffffffu, mine, 1);
        if (lane % 4 != 0 || !to.live[r]) continue;
        const int64_t at = (int64_t(to.frame) * p.height * p.width + to.pixel[r]) * 3;
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
__device__ void convolve(const sm90::TensorMap& input, const sm90::TensorMap& residual, const Params& p,
                         Shared<C>& s) {
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), warpgroup = warp / kWarps;
  if (threadIdx.x == 0) {
    sm90::prefetch_map(input);
    sm90::prefetch_map(residual);
    for (sm90::Barrier& full : s.patch_full) full.init(1);
    for (sm90::Barrier& full : s.weight_full) full.init(1);
    for (sm90::Barrier& empty : s.patch_empty) empty.init(kConsumers * kWarps);
    for (sm90::Barrier& empty : s.weight_empty) empty.init(kConsumers * kWarps);
    for (auto& both : s.squares_full)
      for (sm90::Barrier& full : both) full.init(kWarps);
    sm90::fence_barrier_init();
  }
  __syncthreads();
  sm90::cluster_sync();  // the other CTA may arrive at our barriers
  if (warpgroup == 0) {
    sm90::registers_give<kFeedRegisters>();
    if (warp == 0) Feeder<C>{p, s, input, residual}.run();
  } else {
    sm90::registers_take<kConsumeRegisters>();
    Consumer<C>{p, s, warpgroup - 1}.run();
  }
  __syncwarp();
  sm90::cluster_sync();  // the other CTA may still write here
}

// CTAs that share pixels' channels.
inline int cluster_size(const Params& p) { return p.act.data && p.items.channel_parts == 2 ? 2 : 1; }

// Describes [frames, C / 8, H, W, 8], read in patches.
template <class C>
sm90::TensorMap patch_map(const void* data, int64_t frames, int64_t channels, int64_t height, int64_t width) {
  const auto groups = cuuint64_t(channels / kGroup), row = cuuint64_t(width * kGroup), rows = cuuint64_t(height);
  const cuuint64_t line = 2 * row;
  return sm90::tile_map(data, {row, rows, groups, cuuint64_t(frames)}, {line, line * rows, line * rows * groups},
                        {C::kPatchColumns * kGroup, C::kPatchRows, kChunk / kGroup, 1});
}

#ifdef __CUDACC__
template <class C>
__global__ void __launch_bounds__(kThreads, 1)
    causal_conv_kernel(const __grid_constant__ sm90::TensorMap input, const __grid_constant__ sm90::TensorMap residual,
                       const __grid_constant__ Params p) {
  extern __shared__ __align__(128) uint8_t memory[];
  convolve<C>(input, residual, p, *reinterpret_cast<Shared<C>*>(memory));
}

// Without a residual, its map is not read.
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
  config.gridDim = std::min(p.items.count(), processors / cluster * cluster);
  config.blockDim = kThreads;
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, input, residual, p);
}
#endif
}  // namespace longlive::conv
