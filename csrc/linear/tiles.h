#pragma once
// The work of an int8 product: integers alone, so that a CPU can check every case.
//
// A cluster of CTAs takes as many work tiles at a time, neighbours along the rows, whose weights are the same: each CTA
// loads its part of them for all. Tiles run along the rows first, so that only where a column of tiles ends within a
// cluster the weights differ; then each CTA loads its own.
#include <algorithm>

#include "common/shapes.h"

namespace longlive::linear {
constexpr int kTileRows = 128;
constexpr int kCluster = 2;  // CTAs
constexpr int kStep = 128;   // of depth, in elements and bytes: what a stage of the pipeline holds

struct WorkTile {
  int row, column;
  bool shares_weight;  // with the other CTAs of the cluster
};

struct Tiles {
  int row_tiles, column_tiles, tile_columns;

  constexpr Tiles(int rows, int columns, int tile_columns)
      : row_tiles(ceil_div(rows, kTileRows)),
        column_tiles(ceil_div(columns, tile_columns)),
        tile_columns(tile_columns) {}

  // How many times all tiles of a cluster.
  constexpr int sets() const { return ceil_div(row_tiles * column_tiles, kCluster); }

  // Tiles of the last set that are not there lie below the last row: they read zeros and store nothing.
  constexpr WorkTile at(int set, int rank) const {
    const int count = row_tiles * column_tiles, first = set * kCluster, index = first + rank;
    const int last = std::min(first + kCluster, count) - 1;
    const bool shares = first / row_tiles == last / row_tiles;
    if (index >= count) return {row_tiles * kTileRows, (column_tiles - 1) * tile_columns, shares};
    return {index % row_tiles * kTileRows, index / row_tiles * tile_columns, shares};
  }
};
}  // namespace longlive::linear
