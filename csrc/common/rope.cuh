#pragma once
// Rotary position embedding: a head's first channel pairs are rotated by frame, the others by position in the picture.
#include "common/shapes.h"

namespace longlive {
constexpr int kPairs = kHeadDim / 2;

// Cosines and sines, as tables.
struct Rope {
  const float2* time;   // [frames, time_pairs]
  const float2* space;  // [tokens, kPairs - time_pairs]
  int time_pairs;
};

// The rotations of kSize consecutive channels of one token, the same in every head.
template <int kSize>
struct Rotations {
  float2 pair[kSize / 2];  // cosine, sine

  __device__ Rotations(const Rope& rope, int frame, int token, int channel) {
#pragma unroll
    for (int j = 0; j < kSize / 2; ++j) {
      const int i = channel % kHeadDim / 2 + j;
      pair[j] = i < rope.time_pairs ? rope.time[frame * rope.time_pairs + i]
                                    : rope.space[token * (kPairs - rope.time_pairs) + i - rope.time_pairs];
    }
  }

  __device__ void apply(float (&x)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize / 2; ++i) {
      const float re = x[2 * i], im = x[2 * i + 1];
      x[2 * i] = re * pair[i].x - im * pair[i].y;
      x[2 * i + 1] = re * pair[i].y + im * pair[i].x;
    }
  }
};
}  // namespace longlive
