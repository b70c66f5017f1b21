#pragma once
// Who computes what in ring_attention: integers alone, so that a CPU can check every case.
//
// An output tile is one head's tile of queries; it takes one step per tile of keys. Stream-K over keys: full waves of
// whole output tiles first, so that CTAs side by side read the same keys from L2; the steps of the remaining output
// tiles, end to end, are divided evenly among the CTAs (split-KV), so that all end together. An output tile that is
// split leaves partial results, which a second kernel combines.
#include <algorithm>

#include "common/shapes.h"

namespace longlive::attention {
constexpr int kMinSpan = 4;  // steps; a shorter span costs more to combine than it saves

// Steps of an output tile: tiles of keys. Without keys there is one, since someone must write the zeros.
constexpr int key_tiles_of(int keys, int tile_keys) { return std::max(ceil_div(keys, tile_keys), 1); }

struct OutputTile {
  int head, row, end_row;  // queries [row, end_row)
};

// What a CTA takes at a time: an output tile with all its keys, or with a part of them.
struct WorkTile : OutputTile {
  int first, last;  // tiles of keys [first, last)
  int partial;      // where the partial result goes; -1: all keys are here
};

struct Span {
  int begin, end;  // steps of the split output tiles
};

template <int kTileRows>
class Schedule {
 public:
  static constexpr int kRows = kTileRows;  // queries of an output tile

  Schedule() = default;
  // Without `split_kv` all output tiles are whole, and the last wave is not full.
  constexpr Schedule(int heads, int rows, int key_tiles, int ctas, bool split_kv)
      : rows_(rows), row_tiles_(ceil_div(rows, kTileRows)), key_tiles_(key_tiles), ctas_(ctas) {
    const int tiles = heads * row_tiles_;
    whole_ = split_kv ? tiles / ctas * ctas : tiles;
    steps_ = (tiles - whole_) * key_tiles;
    // By value: std::max would take the address of a constant that the device has not, and the kernel would trap.
    span_ = steps_ == 0 ? 0 : std::max(ceil_div(steps_, ctas), int{kMinSpan});
  }

  static constexpr int partials(int ctas) { return 2 * ctas; }  // a span splits at most two output tiles, at its ends
  // Output tiles that split-KV divides; the host knows them before the keys are known.
  static constexpr int split_tiles(int heads, int rows, int ctas) { return heads * ceil_div(rows, kTileRows) % ctas; }

  // A CTA's work, in its order: from `start` on, until `next` is false.
  struct Cursor {
    int tile, step;
  };
  constexpr Cursor start(int cta) const { return {cta, span(cta).begin}; }
  constexpr bool next(int cta, Cursor& at, WorkTile& work) const {
    if (at.tile < whole_) {
      static_cast<OutputTile&>(work) = tile(at.tile);
      work.first = 0, work.last = key_tiles_, work.partial = -1;
      at.tile += ctas_;
      return true;
    }
    const Span mine = span(cta);
    if (at.step >= mine.end) return false;
    const int n = at.step / key_tiles_, begin = n * key_tiles_;
    static_cast<OutputTile&>(work) = tile(whole_ + n);
    work.first = at.step - begin;
    work.last = std::min(mine.end - begin, key_tiles_);
    const bool is_whole = work.first == 0 && work.last == key_tiles_;
    work.partial = is_whole ? -1 : 2 * cta + (at.step != mine.begin);
    at.step = begin + key_tiles_;
    return true;
  }

  // The partial results of the n-th split output tile: those of CTAs [first, last]; one CTA alone has it whole.
  struct Split {
    OutputTile tile;
    int first, last, begin;
  };
  constexpr Split split(int n) const {
    const int begin = n * key_tiles_;
    return {tile(whole_ + n), begin / span_, (begin + key_tiles_ - 1) / span_, begin};
  }
  constexpr int partial_of(int cta, const Split& split) const { return 2 * cta + (span(cta).begin < split.begin); }

 private:
  constexpr Span span(int cta) const { return {std::min(cta * span_, steps_), std::min((cta + 1) * span_, steps_)}; }
  constexpr OutputTile tile(int index) const {
    const int row = index % row_tiles_ * kTileRows;
    return {index / row_tiles_, row, std::min(row + kTileRows, rows_)};
  }

  int rows_, row_tiles_, key_tiles_, ctas_;
  int whole_;         // output tiles that are not split
  int steps_, span_;  // of the split output tiles; of them, a CTA's
};
}  // namespace longlive::attention
