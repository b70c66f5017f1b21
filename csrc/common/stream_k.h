#pragma once
// Stream-K: who computes what when tiles do not fill whole waves. Integers alone, so that a CPU can check every case.
//
// A tile takes `steps` steps. Full waves of whole tiles come first, so that workers side by side read the same data
// from L2; the steps of the remaining tiles, end to end, are divided evenly among the workers, so that all end together.
// A tile that is split leaves partial sums, which a second kernel combines.
#include <algorithm>

#include "common/shapes.h"

namespace longlive {
// What a worker takes at a time: a tile with all its steps, or with a part of them.
struct Work {
  int tile;
  int first, last;  // steps [first, last)
  int partial;      // where the partial sums go; -1: all steps are here
};

class StreamK {
 public:
  StreamK() = default;
  // Without `split` all tiles are whole, and the last wave is not full. A shorter span than `min_span` steps costs more
  // to combine than it saves.
  constexpr StreamK(int tiles, int steps, int workers, bool split, int min_span = 1)
      : steps_(steps), workers_(workers), whole_(split ? tiles / workers * workers : tiles) {
    total_ = (tiles - whole_) * steps;
    // By value: std::max would take the address of a constant that the device has not, and the kernel would trap.
    span_ = total_ == 0 ? 0 : std::max(ceil_div(total_, workers), int{min_span});
  }

  static constexpr int partials(int workers) { return 2 * workers; }  // a span splits at most two tiles, at its ends
  static constexpr int split_tiles(int tiles, int workers) { return tiles % workers; }

  // A worker's work, in its order: from `start` on, until `next` is false.
  struct Cursor {
    int tile, step;
  };
  constexpr Cursor start(int worker) const { return {worker, begin_of(worker)}; }
  constexpr bool next(int worker, Cursor& at, Work& work) const {
    if (at.tile < whole_) {
      work = {at.tile, 0, steps_, -1};
      at.tile += workers_;
      return true;
    }
    const int end = begin_of(worker + 1);
    if (at.step >= end) return false;
    const int n = at.step / steps_, begin = n * steps_;
    work = {whole_ + n, at.step - begin, std::min(end - begin, steps_), -1};
    if (work.first > 0 || work.last < steps_) work.partial = 2 * worker + (at.step != begin_of(worker));
    at.step = begin + steps_;
    return true;
  }

  // The partial sums of the n-th split tile: those of workers [first, last]; one worker alone has it whole.
  struct Split {
    int tile, first, last, begin;
  };
  constexpr Split split(int n) const {
    const int begin = n * steps_;
    return {whole_ + n, begin / span_, (begin + steps_ - 1) / span_, begin};
  }
  constexpr int partial_of(int worker, const Split& split) const {
    return 2 * worker + (begin_of(worker) < split.begin);
  }

 private:
  constexpr int begin_of(int worker) const { return std::min(worker * span_, total_); }

  int steps_, workers_;
  int whole_;         // tiles that are not split
  int total_, span_;  // steps of the split tiles; of them, a worker's
};
}  // namespace longlive
