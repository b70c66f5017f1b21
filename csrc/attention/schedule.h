#pragma once
// Who computes what in ring_attention: integers alone, so that a CPU can check every case.
//
// An item is one head's tile of queries; it costs as many steps as there are tiles of keys. Items are taken whole, in
// waves of one to each CTA: those that run side by side want the same keys at the same time, and find them in L2. What
// does not fill a wave is the pool: the steps of its items, end to end, are cut into one span for each CTA, so that all
// end together. An item that is cut leaves partial results, which are merged afterwards.
#include <algorithm>

namespace longlive::attention {
constexpr int kTileRows = 128;  // queries of an item
constexpr int kMinSpan = 4;     // steps; a shorter span does not pay for what it leaves to merge

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// A tile of keys: token `row` of the ring and the ones after it, of which `count` are meant.
struct KeyTile {
  int row, count;
};

// The keys: two runs of tokens, either of which may be empty, each cut from its start.
template <int kTileKeys>
struct KeyTiles {
  int begin[2], end[2], tiles[2];

  KeyTiles() = default;
  // `ranges` is [begin, end) twice; what lies outside of the ring is left out.
  constexpr KeyTiles(const int* ranges, int tokens) {
    for (int i = 0; i < 2; ++i) {
      begin[i] = std::clamp(ranges[2 * i], 0, tokens);
      end[i] = std::clamp(ranges[2 * i + 1], begin[i], tokens);
      tiles[i] = ceil_div(end[i] - begin[i], kTileKeys);
    }
    if (count() == 0) tiles[0] = 1;  // of no key: someone must write the zeros
  }
  constexpr int count() const { return tiles[0] + tiles[1]; }
  constexpr KeyTile operator[](int i) const {
    const int run = i >= tiles[0], row = begin[run] + (run ? i - tiles[0] : i) * kTileKeys;
    return {row, std::min(kTileKeys, end[run] - row)};
  }
};

struct Item {
  int head, row, end_row;  // queries [row, end_row)
};

struct Work : Item {
  int first, last;  // tiles of keys [first, last)
  int part;         // where the partial result goes; -1: the item is whole
};

struct Span {
  int begin, end;  // steps of the pool
};

class Schedule {
 public:
  Schedule() = default;
  // Without `cut` there is no pool: the last wave is not full.
  constexpr Schedule(int heads, int rows, int tiles, int ctas, bool cut)
      : rows_(rows), tiles_(tiles), row_tiles_(ceil_div(rows, kTileRows)), ctas_(ctas) {
    const int items = heads * row_tiles_;
    whole_ = cut ? items / ctas * ctas : items;
    pool_ = (items - whole_) * tiles;
    // By value: std::max would take the address of a constant that the device has no copy of, and the kernel would trap.
    step_ = pool_ == 0 ? 0 : std::max(ceil_div(pool_, ctas), int{kMinSpan});
  }

  static constexpr int parts(int ctas) { return 2 * ctas; }  // a span has at most two ends that cut an item
  // Items of the pool; the host knows them before the keys are known.
  static constexpr int pool_items(int heads, int rows, int ctas) { return heads * ceil_div(rows, kTileRows) % ctas; }

  constexpr Span span(int cta) const {
    return {std::min(cta * step_, pool_), std::min((cta + 1) * step_, pool_)};
  }
  constexpr int owner(int step) const { return step / step_; }  // the CTA whose span has this step of the pool
  // A CTA's work, in its order: from `start` on, until `next` is false.
  struct Cursor {
    int item, step;
  };
  constexpr Cursor start(int cta) const { return {cta, span(cta).begin}; }
  constexpr bool next(int cta, Cursor& at, Work& work) const {
    if (at.item < whole_) {
      static_cast<Item&>(work) = item(at.item);
      work.first = 0, work.last = tiles_, work.part = -1;
      at.item += ctas_;
      return true;
    }
    const Span mine = span(cta);
    if (at.step >= mine.end) return false;
    const int n = at.step / tiles_, begin = n * tiles_;
    static_cast<Item&>(work) = item(whole_ + n);
    work.first = at.step - begin;
    work.last = std::min(mine.end - begin, tiles_);
    const bool is_whole = work.first == 0 && work.last == tiles_;
    work.part = is_whole ? -1 : 2 * cta + (at.step != mine.begin);
    at.step = begin + tiles_;
    return true;
  }

  // Which partial results make up the pool's n-th item: those of CTAs [first, last]; one CTA alone has the item whole.
  struct Parts {
    Item item;
    int first, last, begin;
  };
  constexpr Parts parts_of(int n) const {
    const int begin = n * tiles_;
    return {item(whole_ + n), owner(begin), owner(begin + tiles_ - 1), begin};
  }
  constexpr int part_of(int cta, const Parts& parts) const { return 2 * cta + (span(cta).begin < parts.begin); }

 private:
  constexpr Item item(int index) const {
    const int row = index % row_tiles_ * kTileRows;
    return {index / row_tiles_, row, std::min(row + kTileRows, rows_)};
  }

  int rows_, tiles_, row_tiles_, ctas_;
  int whole_;        // items taken whole
  int pool_, step_;  // steps of the pool, of a span
};
}  // namespace longlive::attention
