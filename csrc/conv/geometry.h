#pragma once
// Shapes of the convolution kernel: integers alone, so that a CPU can check them.
//
// A CTA computes a tile of pixels of one frame in N channels. Its depth runs over phases (input frames), within a
// phase over chunks of 32 channels, within a chunk over taps. For each phase and chunk one patch of the input, tile
// and halo, is fetched; every tap reads the same patch from another start. What is added to the result comes last, as
// one more phase with a single tap. Weights come as one stream, in the order of their use.
#include <algorithm>
#include <cstdint>

namespace longlive::conv {
constexpr int kGroup = 8;           // channels that lie together: 16 bytes of a pixel
constexpr int kChunk = 32;          // channels of a patch
constexpr int kSide = 8;            // of a block: 64 pixels, the height of a product
constexpr int kConsumers = 2;       // warpgroups
constexpr int kPixelChannels = 16;  // what the three of a picture are padded to
constexpr int kSharedBytes = 232448;

enum class Kind {
  kCausal,  // 3x3 taps in each of three frames
  kPoint,   // one tap in each of one or three frames
  kUp,      // 2x2 taps: what 3x3 taps on a picture enlarged by copying are to one in four of its pixels
};

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// N: channels of an item; kTiles: blocks of a warpgroup. With kSplit a patch serves one column of taps: three times the
// patches, but each tap then reads whole, aligned lines of shared memory.
template <Kind kKind_, int N_, int kTiles_>
struct Config {
  static constexpr Kind kKind = kKind_;
  static constexpr int N = N_, kTiles = kTiles_;
  static constexpr bool kSplit = kKind == Kind::kCausal && N == 96;

  static constexpr bool kPairs = kKind == Kind::kCausal && N == 192;  // two CTAs may share the norm of 384 channels

  static constexpr int kTapsY = kKind == Kind::kCausal ? 3 : kKind == Kind::kPoint ? 1 : 2;
  static constexpr int kTapsX = kSplit ? 1 : kTapsY, kTaps = kTapsY * kTapsX;
  static constexpr int kRows = kSide * kTiles, kColumns = 2 * kSide;  // pixels of a tile
  static constexpr int kPatchRows = kRows + kTapsY - 1, kPatchColumns = kColumns + kTapsX - 1;
  static constexpr int kPitch = kPatchColumns * 2 * kGroup, kGroupBytes = kPatchRows * kPitch;
  static constexpr int kPatchBytes = kChunk / kGroup * kGroupBytes;

  // Taps whose weights travel together: all of them where they are few bytes.
  static constexpr int kTapsPerStage = N <= kPixelChannels ? kTaps : 1;
  static constexpr int kStagesPerPatch = kTaps / kTapsPerStage;
  static constexpr int kStageBytes = kTapsPerStage * kChunk * 2 * N;

  // What fits. The feeder keeps the order of use: patches ahead of the stages in flight would be of no use.
  static constexpr int kPatchSpace = ceil_div(kPatchBytes, 128) * 128, kSpace = kSharedBytes - 4096;
  static constexpr int kPatches = kStagesPerPatch == 1  ? kSpace / (kPatchSpace + kStageBytes)
                                  : kStagesPerPatch < 9 ? 4
                                                        : 3;
  static constexpr int kStages = (kSpace - kPatches * kPatchSpace) / kStageBytes;
  static_assert(kPatches >= 3 && kStages >= 4);
  // How far the second warpgroup stays behind; the patches of these stages must not wait for it to begin.
  static constexpr int kLate = std::min(kStages / 2, (kPatches - 1) * kStagesPerPatch);

  static constexpr int phases(int frames) { return frames * (kSplit ? 3 : 1); }

  // Where a phase reads, relative to the item's frame and tile; `rest` is the item's.
  struct Origin {
    int frame, y, x;
  };
  static constexpr Origin origin(int phase, int rest) {
    switch (kKind) {
      case Kind::kCausal: return kSplit ? Origin{phase / 3, -1, phase % 3 - 1} : Origin{phase, -1, -1};
      case Kind::kPoint: return {phase, 0, 0};
      default: return {0, rest / 2 - 1, rest % 2 - 1};
    }
  }
  // The one tap of the residual, and where its patches start.
  static constexpr int kCentre = kTaps / 2, kCentreY = -(kTapsY / 2), kCentreX = -(kTapsX / 2);
};

// What a CTA computes at a time.
struct Item {
  int channels;  // which N of them
  int rest;      // which frame of a doubled one, which pixel of an enlarged one
  int frame, y, x;
};

// All items, in an order in which those that run side by side read the same input: parts, then time, then space.
struct Items {
  int channel_parts, parts, frames, tiles_x, tiles_y, rows, columns;

  constexpr int count() const { return parts * frames * tiles_x * tiles_y; }
  constexpr Item operator[](int i) const {
    const int part = i % parts, tile = i / parts / frames;
    return {part % channel_parts, part / channel_parts, i / parts % frames, tile / tiles_x * rows,
            tile % tiles_x * columns};
  }
};
}  // namespace longlive::conv
