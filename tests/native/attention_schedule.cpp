// Checks csrc/attention/schedule.h on a CPU, over random shapes: run by tests/kernels/test_ring_attention.py.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "attention/schedule.h"

using namespace longlive::attention;
using longlive::ceil_div;

struct Shape {
  int heads, rows, keys, ctas, split_kv;
};

#define EXPECT(condition)                                     \
  do {                                                        \
    if (!(condition)) {                                       \
      std::printf("line %d: not %s\n", __LINE__, #condition); \
      return false;                                           \
    }                                                         \
  } while (0)

template <int kTileKeys, int kTileRows>
bool check(const Shape& c) {
  using Schedule = longlive::attention::Schedule<kTileRows>;
  const int key_tiles = key_tiles_of(c.keys, kTileKeys);
  EXPECT(key_tiles > 0 && key_tiles * kTileKeys >= c.keys && (key_tiles - 1) * kTileKeys <= std::max(c.keys - 1, 0));
  const Schedule schedule(c.heads, c.rows, key_tiles, c.ctas, c.split_kv);

  struct Piece {
    int first, last, partial, end_row;
  };
  std::map<std::pair<int, int>, std::vector<Piece>> tiles;  // by head, row; pieces in the order of CTAs
  std::vector<int> written(Schedule::partials(c.ctas)), load(c.ctas), whole(c.ctas);
  long total = 0;
  for (int cta = 0; cta < c.ctas; ++cta) {
    typename Schedule::Cursor at = schedule.start(cta);
    const int waves = c.heads * ceil_div(c.rows, kTileRows) / c.ctas;
    int taken = 0;
    for (WorkTile w; schedule.next(cta, at, w);) {
      if (taken++ < waves) whole[cta] += w.last - w.first;
      EXPECT(w.first >= 0 && w.first < w.last && w.last <= key_tiles);
      EXPECT((w.partial < 0) == (w.first == 0 && w.last == key_tiles));
      if (w.partial >= 0) EXPECT(w.partial / 2 == cta && written[w.partial]++ == 0);
      tiles[{w.head, w.row}].push_back({w.first, w.last, w.partial, w.end_row});
      load[cta] += w.last - w.first;
    }
    total += load[cta];
  }

  // Each row of each head once, with all keys.
  std::vector<int> rows(c.heads * c.rows);
  int split_tiles = 0;
  for (const auto& [key, pieces] : tiles) {
    const auto [head, row] = key;
    int at = 0;
    for (const Piece& piece : pieces) {
      EXPECT(piece.first == at && piece.end_row == pieces[0].end_row);
      at = piece.last;
    }
    EXPECT(at == key_tiles);
    EXPECT(pieces[0].end_row > row && pieces[0].end_row - row <= kTileRows);
    for (int r = row; r < pieces[0].end_row; ++r) EXPECT(rows[head * c.rows + r]++ == 0);
    split_tiles += pieces.size() > 1;
  }
  for (const int n : rows) EXPECT(n == 1);

  // The second kernel finds each partial result, once.
  std::vector<int> combined(written.size());
  const int count = c.split_kv ? Schedule::split_tiles(c.heads, c.rows, c.ctas) : 0;
  for (int n = 0; n < count; ++n) {
    const typename Schedule::Split split = schedule.split(n);
    const auto found = tiles.find({split.tile.head, split.tile.row});
    EXPECT(found != tiles.end());
    const std::vector<Piece>& pieces = found->second;
    EXPECT(split.tile.end_row == pieces[0].end_row && split.last - split.first + 1 == int(pieces.size()));
    if (pieces.size() == 1) continue;
    --split_tiles;
    for (int i = 0; i < int(pieces.size()); ++i) {
      EXPECT(schedule.partial_of(split.first + i, split) == pieces[i].partial);
      ++combined[pieces[i].partial];
    }
  }
  EXPECT(split_tiles == 0 && combined == written);

  // Balance: nobody has more than an even share, or than its whole output tiles and a span of the least length.
  int short_spans = 0;
  for (int cta = 0; c.split_kv && cta < c.ctas; ++cta) {
    EXPECT(load[cta] <= std::max(int((total + c.ctas - 1) / c.ctas), whole[cta] + kMinSpan));
    short_spans += load[cta] > whole[cta] && load[cta] < whole[cta] + kMinSpan;
  }
  EXPECT(short_spans <= 1);  // the last span
  return true;
}

int main(int, char** argv) {
  std::mt19937 random(1);
  const auto draw = [&](int a, int b) { return std::uniform_int_distribution<int>(a, b)(random); };
  for (int i = 0; i < std::atoi(argv[1]); ++i) {
    const int rows = draw(1, draw(0, 3) ? 1500 : 6000), keys = draw(0, draw(0, 1) ? 700 : 3000);
    Shape c{draw(1, 12), rows, keys, 132, draw(0, 4) > 0};
    if (!draw(0, 3)) c.ctas = draw(1, 140);
    if (!draw(0, 3)) c.keys = c.keys / 176 * 176;
    if (!check<16, 128>(c) || !check<176, 128>(c) || !check<128, 192>(c)) {
      std::printf("heads %d, rows %d, keys %d, ctas %d, split_kv %d\n", c.heads, c.rows, c.keys, c.ctas, c.split_kv);
      return 1;
    }
  }
  return 0;
}
