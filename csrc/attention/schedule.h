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

// The keys of one group of queries: two runs of tokens, either of which may be empty, each cut from its start.
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
  int group, head, row, end_row;  // queries [row, end_row)
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
  // Queries [0, split) are group 0, [split, rows) group 1. Without `cut` there is no pool: the last wave is not full.
  constexpr Schedule(int heads, int rows, int split, int tiles_0, int tiles_1, int ctas, bool cut)
      : row_{0, split, rows}, tiles_{tiles_0, tiles_1}, ctas_(ctas) {
    for (int g = 0; g < 2; ++g) row_tiles_[g] = ceil_div(row_[g + 1] - row_[g], kTileRows);
    items_0_ = heads * row_tiles_[0];
    items_ = items_0_ + heads * row_tiles_[1];
    whole_ = cut ? items_ / ctas * ctas : items_;
    // Of the whole items, the first `whole_0` belong to group 0: one more for CTAs below `turn_` than for the others.
    const int whole_0 = std::min(items_0_, whole_), waves = whole_ / ctas, waves_0 = whole_0 / ctas;
    turn_ = whole_0 % ctas;
    pool_0_ = (items_0_ - whole_0) * tiles_0;
    pool_ = pool_0_ + (items_ - whole_ - (items_0_ - whole_0)) * tiles_1;
    const int before = (waves_0 + 1) * tiles_0 + (waves - waves_0 - 1) * tiles_1;
    const int after = waves_0 * tiles_0 + (waves - waves_0) * tiles_1;
    const int total = turn_ * before + (ctas - turn_) * after + pool_, share = ceil_div(total, ctas);
    step_[0] = span_for(share - before);
    step_[1] = span_for(share - after);
  }

  static constexpr int parts(int ctas) { return 2 * ctas; }  // a span has at most two ends that cut an item
  // Items of the pool; the host knows them before the keys are known.
  static constexpr int pool_items(int heads, int rows, int split, int ctas) {
    return heads * (ceil_div(split, kTileRows) + ceil_div(rows - split, kTileRows)) % ctas;
  }

  constexpr Span span(int cta) const {
    return {std::min(start_of(cta), pool_), std::min(start_of(cta + 1), pool_)};
  }
  // The CTA whose span has this step of the pool.
  constexpr int owner(int step) const {
    const int turn = turn_ * step_[0];
    return step < turn ? step / step_[0] : turn_ + (step - turn) / step_[1];
  }
  // A CTA's work, in its order: from `start` on, until `next` is false.
  struct Cursor {
    int item, step;
  };
  constexpr Cursor start(int cta) const { return {cta, span(cta).begin}; }
  constexpr bool next(int cta, Cursor& at, Work& work) const {
    if (at.item < whole_) {
      static_cast<Item&>(work) = item(at.item);
      work.first = 0, work.last = tiles_[work.group], work.part = -1;
      at.item += ctas_;
      return true;
    }
    const Span mine = span(cta);
    if (at.step >= mine.end) return false;
    const Pooled pooled = pool_item_at(at.step);
    static_cast<Item&>(work) = item(pooled.index);
    work.first = at.step - pooled.steps.begin;
    work.last = std::min(mine.end, pooled.steps.end) - pooled.steps.begin;
    const bool is_whole = work.first == 0 && work.last == tiles_[work.group];
    work.part = is_whole ? -1 : 2 * cta + (at.step != mine.begin);
    at.step = pooled.steps.end;
    return true;
  }

  // Which partial results make up the pool's n-th item: those of CTAs [first, last]; one CTA alone has the item whole.
  struct Parts {
    Item item;
    int first, last, begin;
  };
  constexpr Parts parts_of(int n) const {
    const int items_0 = items_0_ - std::min(items_0_, whole_);
    const int begin = n < items_0 ? n * tiles_[0] : pool_0_ + (n - items_0) * tiles_[1];
    const Item it = item(whole_ + n);
    return {it, owner(begin), owner(begin + tiles_[it.group] - 1), begin};
  }
  constexpr int part_of(int cta, const Parts& parts) const { return 2 * cta + (span(cta).begin < parts.begin); }

 private:
  struct Pooled {
    int index;
    Span steps;
  };

  constexpr int span_for(int missing) const {
    // By value: std::max would take the address of a constant that the device has no copy of, and the kernel would trap.
    return pool_ == 0 || missing <= 0 ? 0 : std::max(missing, int{kMinSpan});
  }
  constexpr int start_of(int cta) const {
    return std::min(cta, turn_) * step_[0] + std::max(cta - turn_, 0) * step_[1];
  }
  constexpr Item item(int index) const {
    const int group = index >= items_0_, in_group = group ? index - items_0_ : index;
    const int head = in_group / row_tiles_[group], row = row_[group] + in_group % row_tiles_[group] * kTileRows;
    return {group, head, row, std::min(row + kTileRows, row_[group + 1])};
  }
  constexpr Pooled pool_item_at(int step) const {
    const bool second = step >= pool_0_;
    const int tiles = tiles_[second], n = (second ? step - pool_0_ : step) / tiles;
    const int begin = (second ? pool_0_ : 0) + n * tiles;
    const int first = second ? std::max(items_0_, whole_) : whole_;
    return {first + n, {begin, begin + tiles}};
  }

  int row_[3], tiles_[2], row_tiles_[2], ctas_;
  int items_0_, items_, whole_;   // of group 0, all, those taken whole
  int turn_, pool_0_, pool_;      // steps of the pool: of group 0, all
  int step_[2];                   // length of the span of CTAs below turn_, and of the others
};
}  // namespace longlive::attention
