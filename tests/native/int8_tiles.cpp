// Checks csrc/linear/tiles.h on a CPU, over random shapes: run by tests/kernels/test_int8_linear.py.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "linear/tiles.h"

using namespace longlive::linear;

#define EXPECT(condition)                                     \
  do {                                                        \
    if (!(condition)) {                                       \
      std::printf("line %d: not %s\n", __LINE__, #condition); \
      return false;                                           \
    }                                                         \
  } while (0)

bool check(int rows, int columns, int tile_columns) {
  const Tiles tiles(rows, columns, tile_columns);
  const int row_tiles = (rows + kTileRows - 1) / kTileRows, column_tiles = (columns + tile_columns - 1) / tile_columns;
  EXPECT(tiles.sets() == (row_tiles * column_tiles + kCluster - 1) / kCluster);

  std::vector<int> seen(row_tiles * column_tiles);
  for (int set = 0; set < tiles.sets(); ++set) {
    std::vector<WorkTile> there;
    for (int rank = 0; rank < kCluster; ++rank) {
      const WorkTile tile = tiles.at(set, rank);
      EXPECT(tile.row >= 0 && tile.row % kTileRows == 0);
      EXPECT(tile.column >= 0 && tile.column % tile_columns == 0 && tile.column < columns);
      if (tile.row >= rows) continue;  // reads zeros and stores nothing
      ++seen[tile.row / kTileRows * column_tiles + tile.column / tile_columns];
      there.push_back(tile);
    }
    EXPECT(!there.empty());
    bool same = true;
    for (const WorkTile& tile : there) same = same && tile.column == there[0].column;
    for (int rank = 0; rank < kCluster; ++rank) {
      EXPECT(tiles.at(set, rank).shares_weight == same);
      EXPECT(!same || tiles.at(set, rank).column == there[0].column);
    }
  }
  for (const int times : seen) EXPECT(times == 1);
  return true;
}

int main(int, char** argv) {
  std::mt19937 random(1);
  const auto draw = [&](int a, int b) { return std::uniform_int_distribution<int>(a, b)(random); };
  const int edges[] = {0, 1, 127, 128, 129, 255, 256, 257, 384, 385}, widths[] = {32, 64, 96, 128, 160, 192, 224, 256};
  for (int i = 0; i < std::atoi(argv[1]); ++i) {
    const int rows = draw(0, 1) ? edges[draw(0, 9)] : draw(0, 5000), columns = 32 * draw(1, draw(0, 1) ? 10 : 300);
    const int width = widths[draw(0, 7)];
    if (!check(rows, columns, width)) {
      std::printf("rows %d, columns %d, tiles of %d\n", rows, columns, width);
      return 1;
    }
  }
  return 0;
}
