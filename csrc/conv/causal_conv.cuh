#pragma once
// Convolutions of the video autoencoder as implicit GEMM on Hopper's tensor cores; the epilogue adds bias, norm and
// SiLU before anything is stored. See geometry.h for the order of the work.
//
// Activations are [frames, C / 8, H, W, 8] bfloat16 or [frames, C / 16, H, W, 16] int8: eight consecutive pixels of a
// group of channels are 128 bytes in memory, in shared memory, and as wgmma reads them, so that a tap is a start
// address. One producer warp loads; two consumer warpgroups multiply, each its subtiles of the work tile. The second
// starts a few stages late and keeps that lag: while one is in its epilogue, the other has the tensor cores. Or each
// has work tiles and a producer of its own, and the second starts a whole tile late.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <numbers>
#include <type_traits>

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

// Frames [groups, H, W, 16 bytes] in memory, in any order.
struct Frames {
  uint8_t* data;       // null: there are none
  const int* indices;  // of the frames to read or write
};

struct Params {
  // Indices of the frames of the input, history first, and of the residual; outside of the tensor: frames of zeros.
  const int *inputs, *residuals;
  const uint8_t* weight;  // parts, each a stream of stages
  int64_t part_bytes;
  const float* scale;  // [C], of int8: of the weight and the input
  const float* bias;   // [C]; [2, C] where frames are doubled
  const float* gain;   // [C], with act
  Frames residual;     // of int8
  Frames raw, act;
  float act_inverse;              // of int8's scale; 0: act is bfloat16
  unsigned long long* saturated;  // how many values of act in int8 were too large
  void* pixels;                   // [frames, H, W, 3], with N = kPixelChannels: bytes or bfloat16
  bool as_bytes;
  WorkTiles tiles;
  int height, width;    // of the input
  int channels;         // C, of the output
  uint32_t plane, row;  // bytes of the output: from a group to the next one, and from a pixel to a thread's other one
  int slices, chunks, residual_chunks;
  float eps;
};

// A value for each channel of this CTA's part.
template <int N>
struct alignas(16) PerChannel {
  float value[N];

  // All threads of the CTA.
  __device__ void fill(const float* from) {
    for (int i = threadIdx.x; i < N; i += sm90::kThreads) value[i] = from[i];
  }
  // Four of a run of eight: see Consumer.
  __device__ void read(int block, int half, float (&values)[4]) const {
    const float4 four = sm90::load_shared_in_order(value + 32 * block + threadIdx.x % 4 * 8 + 4 * half);
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
  }
};

constexpr int kResidualGroups = 4;  // of those that are fetched to L2 at a time

template <class C>
struct alignas(128) Shared {
  using Patches = sm90::Pipeline<C::kPatches, 1>;
  using Weights = sm90::Pipeline<C::kStages, 1>;

  struct alignas(128) Patch {
    uint8_t bytes[C::kPatchBytes];  // [groups of channels, rows, columns, 16 bytes]
  };
  struct alignas(128) Weight {
    uint8_t bytes[C::kStageBytes];  // [taps, groups of channels, N, 16 bytes]
  };
  // What the consumers of a work tile read.
  struct Feed {
    Patch patch[C::kPatches];
    Weight weight[C::kStages];
    Patches patches;
    Weights weights;
  };
  Feed feed[C::kFeeds];
  // From the other CTA of the cluster; two buffers, used in alternation.
  float squares[2][kConsumers][C::kClusterNorm ? C::kSubtiles : 1][kSide * kSide];
  PerChannel<C::N> bias, gain;
  PerChannel<C::kInt8 ? C::N : 1> scale;
  sm90::Barrier squares_full[2][kConsumers];
  sm90::Barrier first_multiplied;  // the products of the first work tile
};

// Calls f with the index of each of this CTA's work tiles that go by this feed.
template <class C, class F>
__device__ void for_each_tile(const Params& p, int feed, F f) {
#pragma unroll 1
  for (int i = blockIdx.x + feed * gridDim.x; i < p.tiles.count(); i += C::kFeeds * gridDim.x) f(i);
}

// ---------------------------------------------------------------------------------------------------------------------
// Producer: one warp for each feed. All its lanes run the loop, so that the state is uniform; the first one issues.

template <class C>
struct Producer {
  const Params& p;
  typename Shared<C>::Feed& s;
  const int feed;
  const sm90::TensorMap &input, &residual;
  const bool issues = threadIdx.x % 32 == 0;
  typename Shared<C>::Patches::State patch;
  typename Shared<C>::Weights::State weight;

  __device__ void run() {
    for_each_tile<C>(p, feed, [&](int i) {
      const WorkTile tile = p.tiles[i];
      const uint8_t* from = p.weight + (tile.result * p.tiles.channel_parts + tile.channels) * p.part_bytes;
      if constexpr (C::kInt8) prefetch_residual(tile);
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
    });
  }

  // Brings to L2 what the epilogue will add.
  __device__ void prefetch_residual(const WorkTile& tile) {
    if (!p.residual.data || !issues) return;
    const int frame = p.residuals[tile.frame];
#pragma unroll 1
    for (int first = 0; first < C::N / kGroup; first += kResidualGroups)
      sm90::prefetch_tile(residual, tile.x * kGroup, tile.y, tile.channels * C::N / kGroup + first, frame);
  }

  __device__ void load_patch(const sm90::TensorMap& map, int x, int y, int chunk, int frame) {
    s.patches.acquire(patch);
    if (issues) {
      sm90::Barrier& full = s.patches.full[patch.stage];
      full.arrive_and_expect(C::kPatchBytes);
      sm90::load_tile(s.patch[patch.stage].bytes, map, full, x * kGroup, y, chunk * C::kGroups, frame);
    }
    patch.advance();
  }

  __device__ const uint8_t* load_weight(const uint8_t* from) {
    s.weights.acquire(weight);
    if (issues) {
      sm90::Barrier& full = s.weights.full[weight.stage];
      full.arrive_and_expect(C::kStageBytes);
      sm90::load_bytes(s.weight[weight.stage].bytes, from, C::kStageBytes, full);
    }
    weight.advance();
    return from + C::kStageBytes;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Consumer: a warpgroup. Of each of its subtiles, a thread has pixel lane / 4 of rows 2 warp and 2 warp + 1. Of each 32
// columns of a product it has those that the instruction numbers 8 i + 2 (lane % 4) + j, in accumulator 4 i + 2 r + j
// of the 16 of row r; packed weights make them channels 8 (lane % 4) + 2 i + j, a run of eight.

// x / (1 + exp(-x))
__device__ inline float silu(float x) { return x * reciprocal(1 + exp2(x * -std::numbers::log2e_v<float>)); }

// The same in pairs of halves. Precision: half, whose error is a few hundredths of a step of int8.
__device__ inline __half2 silu(__half2 x) {
  const __half2 half = __hmul2(x, __float2half2_rn(0.5f));
  return __hfma2(half, tanh_approx(half), half);
}

template <class C>
struct Consumer {
  static constexpr int N = C::N, kSubtiles = C::kSubtiles, kBlocks = N / 32, kPairs = N / 8;
  using T = std::conditional_t<C::kInt8, int8_t, bf16>;

  const Params& p;
  Shared<C>& s;
  const int index;  // of the warpgroup, among the consumers
  typename Shared<C>::Feed& in = s.feed[C::kApart ? index : 0];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kWarpgroupWarps;
  typename Shared<C>::Patches::State patch;
  typename Shared<C>::Weights::State weight;
  uint32_t exchanges = 0;
  sm90::Sum<T> acc[kSubtiles][N / 2];

  __device__ void run() {
    if (index == 1) wait_for_lag();
    for_each_tile<C>(p, C::kApart ? index : 0, [&](int i) {
      multiply();
      if (C::kApart && i == int(blockIdx.x) && lane == 0) s.first_multiplied.arrive();
      sm90::pin(i);  // the work tile is computed here, not beforehand: registers are short
      epilogue(p.tiles[i]);
    });
  }

  // By a whole work tile where each has its own.
  __device__ void wait_for_lag() {
    if constexpr (C::kApart) {
      if (int(blockIdx.x + gridDim.x) < p.tiles.count()) s.first_multiplied.wait(0);
    } else {
      const int stages = p.slices * p.chunks * C::kStagesPerPatch;
      if (int(blockIdx.x) < p.tiles.count()) in.weights.full[min(C::kLag, stages - 1)].wait(0);
    }
  }

  __device__ void multiply() {
#pragma unroll
    for (int i = 0; i < kSubtiles; ++i) {
#pragma unroll
      for (auto& x : acc[i]) x = 0;
      sm90::pin(acc[i]);
    }
    // The stages that products in flight read; at first none, which is what the spare barriers stand for.
    int last_patch = C::kPatches, last_weight = C::kStages;
#pragma unroll 1
    for (int i = p.slices * p.chunks + p.residual_chunks; i > 0; --i) {
      const bool is_residual = C::kTapsPerStage == 1 && i <= p.residual_chunks;
      const int stages = is_residual ? 1 : C::kStagesPerPatch;
      in.patches.wait(patch);
      const uint64_t a = sm90::plain_descriptor(in.patch[patch.stage].bytes, C::kPlane, C::kPitch);
#pragma unroll 1
      for (int stage = 0; stage < stages; ++stage) {
        in.weights.wait(weight);
        const uint64_t b = sm90::plain_descriptor(in.weight[weight.stage].bytes, N * kGroupBytes, kSide * kGroupBytes);
        sm90::mma_fence();
#pragma unroll
        for (int t = 0; t < C::kTapsPerStage; ++t) {
          const int tap = is_residual ? C::kCentre : stage * C::kTapsPerStage + t;
          // In 16 bytes, the unit of descriptors.
          const int start = tap / C::kTapsX * C::kPatchColumns + tap % C::kTapsX;
#pragma unroll
          for (int k = 0; k < C::kDepth; ++k)
#pragma unroll
            for (int j = 0; j < kSubtiles; ++j)
              sm90::mma_ss<T, N>(acc[j], a + start + start_of(j) + k * 2 * C::kPlane / 16,
                                 b + (t * C::kGroups + k * 2) * N);
        }
        sm90::mma_commit();
        sm90::mma_wait<1>();
        in.weights.release(last_weight, lane);
        if (stage == 0) in.patches.release(last_patch, lane);
        last_weight = weight.stage;
        weight.advance();
      }
      last_patch = patch.stage;
      patch.advance();
    }
    sm90::mma_wait<0>();
#pragma unroll
    for (int i = 0; i < kSubtiles; ++i) sm90::pin(acc[i]);
    in.weights.release(last_weight, lane);
    in.patches.release(last_patch, lane);
  }

  // Of subtile i, as wgmma starts reading it; a work tile has two columns of subtiles.
  __device__ int start_of(int i) const {
    const int subtile = (C::kApart ? 0 : index * kSubtiles) + i;
    return subtile / 2 * kSide * C::kPatchColumns + subtile % 2 * kSide;
  }

  // This thread's two pixels of a subtile.
  struct Pixels {
    int frame, at[2];  // of the output
    bool live[2];
  };
  __device__ Pixels pixels(const WorkTile& tile, int i) const {
    const int subtile = (C::kApart ? 0 : index * kSubtiles) + i;
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

  // Where this thread's runs of channels lie in a tensor of kElement bytes an element: block after block of 32. One
  // pointer, to be short of registers: that to the other pixel is a parameter further.
  template <int kElement>
  struct Runs {
    const Params& p;
    uint8_t* at;
    bool live[2];

    __device__ Runs(const Consumer& c, const Frames& t, const WorkTile& tile, const Pixels& pixels, int frame)
        : p(c.p) {
      const int run = 8 * kElement * (c.lane % 4),
                group = tile.channels * N * kElement / kGroupBytes + run / kGroupBytes;
      const bool any = t.data && frame >= 0;
      at = t.data;
      if (any) at += (int64_t(frame) * (p.channels * kElement / kGroupBytes) + group) * p.plane + run % kGroupBytes;
      at += int64_t(pixels.at[0]) * kGroupBytes;
#pragma unroll
      for (int r = 0; r < 2; ++r) live[r] = any && pixels.live[r];
    }
    template <class Run>
    __device__ void put(int r, Run run) {
      static_assert(sizeof(Run) == 8 * kElement);
      if (live[r]) sm90::store(at + r * p.row, run);
    }
    __device__ uint4 get(int r) const {
      return live[r] ? sm90::load_in_order(reinterpret_cast<const uint4*>(at + r * p.row)) : uint4{};
    }
    __device__ void next() {
      at += 32 * kElement / kGroupBytes * p.plane;
      sm90::pin(at);  // else all are computed beforehand
    }
  };

  __device__ void epilogue(const WorkTile& tile) {
    uint32_t y[kSubtiles][2][kPairs];
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

  // What is added to a block's runs, loaded a block ahead.
  struct Residual {
    Runs<2> runs;
    uint32_t now[2][4];
    uint4 next[2];

    __device__ Residual(const Consumer& c, const WorkTile& tile, const Pixels& pixels)
        : runs(c, c.p.residual, tile, pixels, c.p.residual.data ? sm90::load_in_order(c.p.residuals + tile.frame) : 0) {
      load(0), load(1);
    }
    // Of pixel r, once those of the block before are no longer needed.
    __device__ void load(int r) {
      next[r] = runs.get(r);
      if (r == 1) runs.next();
    }
    __device__ void take() {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        now[r][0] = next[r].x, now[r][1] = next[r].y, now[r][2] = next[r].z, now[r][3] = next[r].w;
    }
  };
  struct None {
    template <class... Args>
    __device__ explicit None(const Args&...) {}
  };

  // y = accumulator (scale) + bias (+ residual), and the sum of its squares over the pixel's channels.
  __device__ void store_raw(const WorkTile& tile, int i, uint32_t (&y)[2][kPairs], float (&squares)[2]) {
    int subtile = i;
    sm90::pin(subtile);  // addresses are computed here, not for all subtiles beforehand
    const Pixels to = pixels(tile, subtile);
    std::conditional_t<C::kInt8, Residual, None> residual(*this, tile, to);
    Runs<2> raw(*this, p.raw, tile, to, p.raw.data ? sm90::load_in_order(p.raw.indices + to.frame) : 0);
    squares[0] = squares[1] = 0;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const bool last = block == kBlocks - 1;
      if constexpr (C::kInt8) residual.take();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float biases[4], scales[4];
        s.bias.read(block, half, biases);
        if constexpr (C::kInt8) s.scale.read(block, half, scales);
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            // Precision: float32 up to here, rounded once; the norm reads it rounded, as the published order does.
            const auto* sum = acc[i] + 16 * block + 4 * (2 * half + k) + 2 * r;
            float a = float(sum[0]), b = float(sum[1]);
            if constexpr (C::kInt8) {
              const uint32_t more = residual.now[r][2 * half + k];
              a = fmaf(a, scales[2 * k], biases[2 * k]) + low(more);
              b = fmaf(b, scales[2 * k + 1], biases[2 * k + 1]) + high(more);
            } else {
              a += biases[2 * k], b += biases[2 * k + 1];
            }
            const uint32_t value = pack(a, b);
            squares[r] = fmaf(low(value), low(value), fmaf(high(value), high(value), squares[r]));
            y[r][4 * block + 2 * half + k] = value;
          }
        if constexpr (C::kInt8)
          if (!last) residual.load(half);  // now that a few registers are free
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t* run = y[r] + 4 * block;
        raw.put(r, uint4{run[0], run[1], run[2], run[3]});
      }
      raw.next();
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
  __device__ void store_act(const WorkTile& tile, int i, const uint32_t (&y)[2][kPairs], const float (&squares)[2]) {
    float scale[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) scale[r] = rsqrtf(squares[r] / float(p.channels) + p.eps);
    int subtile = i;
    sm90::pin(subtile);
    const Pixels to = pixels(tile, subtile);
    const int frame = sm90::load_in_order(p.act.indices + to.frame);
    if (p.act_inverse > 0) {
      Runs<1> act(*this, p.act, tile, to, frame);
      store_int8(act, y, scale);
    } else {
      Runs<2> act(*this, p.act, tile, to, frame);
      store_bf16(act, y, scale);
    }
  }

  __device__ void store_bf16(Runs<2>& act, const uint32_t (&y)[2][kPairs], const float (&scale)[2]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      uint32_t values[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float gains[4];
        s.gain.read(block, half, gains);
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            // Precision: float32, rounded once; the published order rounds the norm, too.
            const uint32_t pair = y[r][4 * block + 2 * half + k];
            values[r][2 * half + k] =
                pack(silu(low(pair) * scale[r] * gains[2 * k]), silu(high(pair) * scale[r] * gains[2 * k + 1]));
          }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) act.put(r, uint4{values[r][0], values[r][1], values[r][2], values[r][3]});
      act.next();
    }
  }

  // In steps of int8's scale, as pairs of halves: 1536 + n, for a small integer n, has n's low byte as its own.
  __device__ void store_int8(Runs<1>& act, const uint32_t (&y)[2][kPairs], const float (&scale)[2]) {
    const __half2 inverse = __float2half2_rn(p.act_inverse), zero = __float2half2_rn(1536.f);
    const __half2 most = __float2half2_rn(1536.f + 127);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      __half2 values[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float gains[4];
        s.gain.read(block, half, gains);
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const uint32_t pair = y[r][4 * block + 2 * half + k];
            const __half2 normed =
                __floats2half2_rn(low(pair) * scale[r] * gains[2 * k], high(pair) * scale[r] * gains[2 * k + 1]);
            values[r][2 * half + k] = __hfma2(silu(normed), inverse, zero);
          }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        auto& run = values[r];
        const __half2 largest = __hmax2_nan(__hmax2_nan(run[0], run[1]), __hmax2_nan(run[2], run[3]));
        const bool over = act.live[r] && exceeds(largest, most);
        if (__any_sync(0xffffffffu, over)) count_saturated(run, most, over);
#pragma unroll
        for (__half2& pair : run) pair = __hmin2(pair, most);
        act.put(r, uint2{bytes_of(run[0], run[1]), bytes_of(run[2], run[3])});
      }
      act.next();
    }
  }

  // Either is larger, or is not a number.
  static __device__ bool exceeds(__half2 x, __half2 most) { return !__hble2(x, most); }
  // By all lanes of the warp, whose counts one of them adds up.
  __device__ void count_saturated(const __half2 (&run)[4], __half2 most, bool over) const {
    unsigned count = 0;
#pragma unroll
    for (const __half2 pair : run)
      if (over) count += exceeds(__low2half2(pair), most) + exceeds(__high2half2(pair), most);
    count = __reduce_add_sync(0xffffffffu, count);
    if (lane == 0) atomicAdd(p.saturated, static_cast<unsigned long long>(count));
  }
  // Four int8, the first in the lowest byte.
  static __device__ uint32_t bytes_of(__half2 a, __half2 b) {
    return __byte_perm(reinterpret_cast<const uint32_t&>(a), reinterpret_cast<const uint32_t&>(b), 0x6420);
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
    for (auto& feed : s.feed) {
      feed.patches.init(C::kTogether * kWarpgroupWarps);
      feed.weights.init(C::kTogether * kWarpgroupWarps);
    }
    s.first_multiplied.init(kWarpgroupWarps);
    for (auto& both : s.squares_full)
      for (sm90::Barrier& full : both) full.init(kWarpgroupWarps);
    sm90::fence_barrier_init();
  }
  const WorkTile first = p.tiles[blockIdx.x];  // of the same part as all others of this CTA
  if constexpr (C::N > kPixelChannels) {
    const int part = (C::kKind == Kind::kPoint ? first.result * p.tiles.channel_parts : 0) + first.channels;
    s.bias.fill(p.bias + part * C::N);
    if (p.gain) s.gain.fill(p.gain + first.channels * C::N);
    if constexpr (C::kInt8) s.scale.fill(p.scale + first.channels * C::N);
  }
  __syncthreads();
  sm90::cluster_sync();  // the other CTA may arrive at our barriers
  if (warpgroup == 0) {
    sm90::reg_dealloc<sm90::kProducerRegisters>();
    if (warp < C::kFeeds) Producer<C>{p, s.feed[warp], warp, input, residual}.run();
  } else {
    sm90::reg_alloc<sm90::kConsumerRegisters>();
    Consumer<C>{p, s, warpgroup - 1}.run();
  }
  __syncwarp();
  sm90::cluster_sync();  // the other CTA may still write here
}

// CTAs that share the norm of a pixel's channels.
inline int cluster_size(const Params& p) { return p.act.data && p.tiles.channel_parts == 2 ? 2 : 1; }

// Describes [frames, groups, H, W, 16 bytes], read in boxes; to the copy engine eight elements of two bytes, of which a
// box may have no more than 256 side by side.
inline sm90::TensorMap box_map(const void* data, int64_t frames, int64_t groups, int64_t height, int64_t width,
                               int box_columns, int box_rows, int box_groups) {
  const auto row = cuuint64_t(width * kGroup), line = cuuint64_t(width * kGroupBytes), rows = cuuint64_t(height);
  return sm90::tile_map<bf16, 4>(static_cast<const bf16*>(data), {row, rows, cuuint64_t(groups), cuuint64_t(frames)},
                                 {line, line * rows, line * rows * groups},
                                 {cuuint32_t(box_columns * kGroup), cuuint32_t(box_rows), cuuint32_t(box_groups), 1},
                                 sm90::Swizzle::kNone);
}
template <class C>
__global__ void __launch_bounds__(sm90::kThreads, 1)
    causal_conv_kernel(const __grid_constant__ sm90::TensorMap input, const __grid_constant__ sm90::TensorMap residual,
                       const __grid_constant__ Params p) {
  convolve<C>(input, residual, p, sm90::shared_memory<Shared<C>>());
}

// Of patches of the input; of the residual, in patches too or in the boxes that are fetched ahead.
struct Maps {
  sm90::TensorMap input, residual;
};

template <class C>
cudaError_t launch(const Maps& maps, const Params& p, int processors, cudaStream_t stream) {
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
  config.gridDim = std::min(p.tiles.count(), std::max(1, processors / p.tiles.parts) * p.tiles.parts);
  config.blockDim = sm90::kThreads;
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, maps.input, maps.residual, p);
}
}  // namespace longlive::conv
