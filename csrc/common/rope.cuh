#pragma once
// Rotary positions: the channel pairs of each head turn by frame (the first ones) and by place in the picture.
namespace longlive {
constexpr int kHeadDim = 128;
constexpr int kPairs = kHeadDim / 2;

// Cosines and sines, as tables.
struct Rope {
  const float2* time;   // [frames, time_pairs]
  const float2* space;  // [tokens, kPairs - time_pairs]
  int time_pairs;
};

// The turns of kSize consecutive channels of one token. Channels that lie whole heads apart share them.
template <int kSize>
struct Turns {
  float2 turn[kSize / 2];

  __device__ Turns(const Rope& rope, int frame, int token, int channel) {
#pragma unroll
    for (int j = 0; j < kSize / 2; ++j) {
      const int pair = channel % kHeadDim / 2 + j;
      turn[j] = pair < rope.time_pairs ? rope.time[frame * rope.time_pairs + pair]
                                       : rope.space[token * (kPairs - rope.time_pairs) + pair - rope.time_pairs];
    }
  }

  __device__ void rotate(float (&x)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize / 2; ++i) {
      const float re = x[2 * i], im = x[2 * i + 1];
      x[2 * i] = re * turn[i].x - im * turn[i].y;
      x[2 * i + 1] = re * turn[i].y + im * turn[i].x;
    }
  }
};
}  // namespace longlive
