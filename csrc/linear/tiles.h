#pragma once
// The work of an int8 product: integers alone, so that a CPU can check every case.
//
// A cluster of two CTAs takes two work tiles at a time, neighbours along the rows, whose weights are the same: each
// loads half of them for both. Tiles run along the rows first, so that only a pair at the end of an odd number of
// tiles of rows has different weights; then each CTA loads its own.
#include "common/stream_k.h"

namespace longlive::linear {
constexpr int kCluster = 2;
constexpr int kTileRows = 128;
constexpr int kStep = 128;  // of depth, in elements and bytes: what a stage of the pipeline holds

struct WorkTile {
  int row, column;
  bool shares_weight;  // with the other CTA of the cluster
};

struct Tiles {
  int row_tiles, column_tiles, tile_columns;

  constexpr Tiles(int rows, int columns, int tile_columns)
      : row_tiles(ceil_div(rows, kTileRows)),
        column_tiles(ceil_div(columns, tile_columns)),
        tile_columns(tile_columns) {}

  constexpr int pairs() const { return ceil_div(row_tiles * column_tiles, kCluster); }

  // The tile of an odd number of tiles that is not there lies below the last row: it reads zeros and stores nothing.
  constexpr WorkTile at(int pair, int rank) const {
    const int first = pair * kCluster, column = first / row_tiles, row = first % row_tiles + rank;
    const bool same = row < row_tiles || column + 1 == column_tiles;
    const bool shares = first % row_tiles + 1 < row_tiles || column + 1 == column_tiles;
    return {(same ? row : 0) * kTileRows, (same ? column : column + 1) * tile_columns, shares};
  }
};
}  // namespace longlive::linear
