#pragma once
#include <cuda.h>

#include "common/sm90/barrier.cuh"

namespace longlive::sm90 {
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

inline void prefetch(const CUtensorMap&) {}

inline void load_box(void* to, const CUtensorMap& map, int row, int column, Barrier& landed) {
  const uint32_t at = shared_address(to);
  emulator::require(at % 1024 == 0, "a box that starts inside of a swizzle");
  emulator::block->copies.push_back([=, &map, &landed] {
    for (int r = 0; r < map.box_rows; ++r)
      for (int c = 0; c < 64; ++c) {
        const bool inside = row + r >= 0 && row + r < map.rows && column + c < map.columns;
        const uint16_t x = inside ? map.data[(row + r) * map.stride + column + c] : 0;
        std::memcpy(emulator::shared + swizzled(at + r * 128 + c * 2), &x, 2);
      }
    landed.land(map.box_rows * 128);
  });
}

inline CUtensorMap matrix_map(const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  emulator::require(box_rows <= 256 && stride % 16 == 0, "a matrix that the copy engine does not take");
  return {static_cast<const uint16_t*>(data), rows, columns, stride / 2, box_rows};
}
}  // namespace longlive::sm90
