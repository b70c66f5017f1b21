#pragma once
// Shapes of the convolution kernel: integers alone, so that a CPU can check them.
//
// Implicit GEMM: a work tile is a tile of pixels of one frame times N output channels. Its depth K runs over slices
// (input frames), within a slice over chunks of 32 channels, within a chunk over taps. For each slice and chunk one
// patch of the input, tile and halo, is loaded; a tap is a start address in that patch. The residual comes last, as one
// more slice with a single tap; of int8 the epilogue adds it. Weights are one stream, in the order of their use.
#include <algorithm>
#include <cstdint>

#include "common/shapes.h"

namespace longlive::conv {
constexpr int kGroupBytes = 16;     // of a pixel's channels: those that lie together
constexpr int kGroup = 8;           // so many of bfloat16
constexpr int kChunk = 32;          // channels of a patch
constexpr int kSide = 8;            // of a subtile: 8 x 8 pixels are the 64 rows of a wgmma
constexpr int kPixelChannels = 16;  // what the three of a picture are padded to

enum class Kind {
  kCausal,  // 3x3 taps in each of three frames
  kPoint,   // one tap in each of one or three frames
  kUp,      // nearest-neighbour 2x upsampling, then 3x3 taps: to an output pixel, 2x2 taps at the low resolution
};

// N: output channels of a work tile; kSubtiles: 64 pixels each, of a warpgroup; kElement: bytes of what is multiplied,
// 2 of bfloat16 and 1 of int8.
template <Kind kKind_, int N_, int kSubtiles_, int kElement_ = 2>
struct Config {
  static constexpr Kind kKind = kKind_;
  static constexpr int N = N_, kSubtiles = kSubtiles_, kElement = kElement_;
  static constexpr bool kInt8 = kElement == 1;

  // Each consumer has work tiles of its own, and what is loaded for them: one's epilogue, which here takes as long as
  // its products, overlaps all of the other's products. Weights are then loaded for each: only where L2 delivers them.
  static constexpr bool kApart = N == 96;
  static constexpr int kFeeds = kApart ? 2 : 1, kTogether = 2 / kFeeds;  // consumers on a work tile

  // A cluster of two CTAs may share the norm of 384 channels.
  static constexpr bool kClusterNorm = kKind == Kind::kCausal && N == 192;

  static constexpr int kTapsY = kKind == Kind::kCausal ? 3 : kKind == Kind::kPoint ? 1 : 2;
  static constexpr int kTapsX = kTapsY, kTaps = kTapsY * kTapsX;
  static constexpr int kRows = kSide * kSubtiles * kTogether / 2, kColumns = 2 * kSide;  // pixels of a work tile
  static constexpr int kPatchRows = kRows + kTapsY - 1, kPatchColumns = kColumns + kTapsX - 1;
  static constexpr int kGroups = kChunk * kElement / kGroupBytes;  // of a chunk
  static constexpr int kPitch = kPatchColumns * kGroupBytes, kPlane = kPatchRows * kPitch;
  static constexpr int kPatchBytes = kGroups * kPlane;
  static constexpr int kDepth = kChunk * kElement / 32;  // products of a tap

  // Taps whose weights travel together: all of them where they are few bytes; of int8 a row of them, whose three
  // products are as deep as one tap's and a half of bfloat16.
  static constexpr int kTapsPerStage = N <= kPixelChannels ? kTaps : kInt8 ? kTapsX : 1;
  static constexpr int kStagesPerPatch = kTaps / kTapsPerStage;
  static constexpr int kStageBytes = kTapsPerStage * kChunk * kElement * N;

  // What fits. The producer loads in the order of use: more patches than the weight stages in flight cover
  // would never be used.
  static constexpr int kPatchSpace = ceil_div(kPatchBytes, 128) * 128, kSpace = (kSharedBytes - 5120) / kFeeds;
  static constexpr int kPatches = kStagesPerPatch == 1  ? kSpace / (kPatchSpace + kStageBytes)
                                  : kStagesPerPatch < 9 ? 4
                                                        : 3;
  static constexpr int kStages = (kSpace - kPatches * kPatchSpace) / kStageBytes;
  static_assert(kPatches >= 3 && kStages >= 4);
  // Weight stages by which warpgroup 1 lags warpgroup 0, so that one's epilogue overlaps the other's products. They
  // read at most kPatches - 1 patches: else the producer waits for a warpgroup that waits for the producer.
  static constexpr int kLag = std::min(kStages / 2, (kPatches - 1) * kStagesPerPatch);

  // Where a slice reads, relative to the work tile's frame and pixels; `result` is the work tile's.
  struct Origin {
    int frame, y, x;
  };
  static constexpr Origin origin(int slice, int result) {
    switch (kKind) {
      case Kind::kCausal: return {slice, -1, -1};
      case Kind::kPoint: return {slice, 0, 0};
      default: return {0, result / 2 - 1, result % 2 - 1};
    }
  }
  // The one tap of the residual, and where its patches start.
  static constexpr int kCentre = kTaps / 2, kCentreY = -(kTapsY / 2), kCentreX = -(kTapsX / 2);
};

struct WorkTile {
  int channels;     // which N of them
  int result;       // of an input pixel: which of the frames or pixels that it becomes
  int frame, y, x;  // of the input
};

// All work tiles, in an order in which those that run side by side read the same input: parts, then time, then space.
// CTAs are a multiple of the parts, so that each has one part of all its tiles.
struct WorkTiles {
  int channel_parts, parts, frames, tiles_x, tiles_y, rows, columns;

  constexpr int count() const { return parts * frames * tiles_x * tiles_y; }
  constexpr WorkTile operator[](int i) const {
    const int part = i % parts, tile = i / parts / frames;
    return {part % channel_parts, part / channel_parts, i / parts % frames, tile / tiles_x * rows,
            tile % tiles_x * columns};
  }
};
}  // namespace longlive::conv
