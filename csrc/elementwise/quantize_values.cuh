#pragma once
// quantize_values: values as e4m3 into a ring in which a channel's tokens lie in a row (kernels/quantize_values.py). A
// block transposes kTileGroups groups of tokens of kTileVectors vectors of 16 bytes. A thread loads four tokens'
// vectors, two of each half of a group: of each channel four bytes in a row.
#include "common/fp8.cuh"
#include "common/shapes.h"
#include "common/vec.cuh"

namespace longlive {
template <class T>
struct QuantizeValuesParams {
  const T* v;                // [frames * tokens, size], rows `stride` apart
  const float* v_offset;     // [size]
  const float* v_scale;      // [size]
  uint8_t* v_ring;           // [size, room]
  const int64_t* slots;      // [frames]
  int64_t stride, room;      // room: a multiple of kValueGroup
  int tokens, tiles, parts;  // of a frame: a multiple of 8; its tiles; parts of `size` that a block has
};

constexpr int kTileVectors = 16;
constexpr int kTileGroups = 4;
constexpr int kGroupWords = kValueGroup / 4;
constexpr int kTileThreads = kTileVectors * kTileGroups * kGroupWords;

// Tiles that a frame of so many tokens needs, wherever it begins.
constexpr int value_tiles(int tokens) { return ceil_div(ceil_div(tokens, kValueGroup), kTileGroups); }
template <class T>
constexpr int kTileChannels = kTileVectors * Vec<T>::kSize;

// A channel's groups of a tile in shared memory. Their places and the gaps let a warp's words, and its groups, lie in
// banks of their own.
template <class T>
struct ValueTile {
  static constexpr int kSize = Vec<T>::kSize;
  uint4 groups[kTileVectors][(kSize + 1) * kTileGroups];

  // Of channel i of a vector.
  __device__ uint4& group(int vector, int i, int group) {
    return groups[vector][i * kTileGroups + (group ^ vector / 2 % kTileGroups)];
  }
};

// A frame's tokens in the ring, both multiples of 8: its first one, and the one behind its last.
struct FrameInRing {
  int64_t begin, end;
  __device__ bool has(int64_t token) const { return token >= begin && token < end; }
};

template <class T>
__global__ void __launch_bounds__(kTileThreads) quantize_values_kernel(const QuantizeValuesParams<T> p) {
  constexpr int kSize = Vec<T>::kSize;
  static __shared__ ValueTile<T> tile;
  const int part = blockIdx.x % p.parts, block = blockIdx.x / p.parts, frame = block / p.tiles;
  const int64_t begin = p.slots[frame] * p.tokens;
  const FrameInRing in_ring{begin, begin + p.tokens};
  const int64_t first = (begin / kValueGroup + block % p.tiles * kTileGroups) * kValueGroup;

  {
    const int vector = threadIdx.x % 8 + threadIdx.x / 32 % 2 * 8, word = threadIdx.x / 8 % kGroupWords;
    const int group = threadIdx.x / 64, channel = part * kTileChannels<T> + vector * kSize;
    float offset[kSize], inverse[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      offset[i] = p.v_offset[channel + i];
      inverse[i] = __fdiv_rn(1, p.v_scale[channel + i]);
    }
    uint32_t words[kSize] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = first + group * kValueGroup + half * 8 + word * 2;
      if (!in_ring.has(token)) continue;
      const T* row = p.v + (int64_t(frame) * p.tokens + (token - begin)) * p.stride + channel;
      const auto a = Vec<T>::load(row), b = Vec<T>::load(row + p.stride);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const uint16_t pair = pack_e4m3((a[i] - offset[i]) * inverse[i], (b[i] - offset[i]) * inverse[i]);
        words[i] |= uint32_t(pair) << 16 * half;
      }
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) reinterpret_cast<uint32_t*>(&tile.group(vector, i, group))[word] = words[i];
  }
  __syncthreads();

#pragma unroll
  for (int i = threadIdx.x; i < kTileChannels<T> * kTileGroups; i += kTileThreads) {
    const int group = i % kTileGroups, channel = i / kTileGroups;
    const int64_t token = first + group * kValueGroup;
    const bool left = in_ring.has(token), right = in_ring.has(token + 8);
    const uint4 bytes = tile.group(channel / kSize, channel % kSize, group);
    uint8_t* out = p.v_ring + (part * kTileChannels<T> + channel) * p.room + token;
    if (left && right) {
      *reinterpret_cast<uint4*>(out) = bytes;
    } else if (left || right) {  // the other half is another frame's
      const uint32_t words[] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
      for (int word = 0; word < kGroupWords; ++word)
        *reinterpret_cast<uint16_t*>(out + 4 * word + 2 * right) = uint16_t(right ? words[word] >> 16 : words[word]);
    }
  }
}
}  // namespace longlive
