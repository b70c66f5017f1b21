#pragma once
#include "common/sm90/barrier.cuh"
#include "common/sm90/tensor_map.h"

namespace longlive::sm90 {
inline void prefetch(const TensorMap&) {}
inline void prefetch_tile(const TensorMap&, int, int, int, int) {}

inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// A row of a box, of which elements [0, size) of the tensor exist.
inline void land_row(uint8_t* memory, uint32_t at, const TensorMap& map, const uint8_t* from, int start) {
  const int bytes = map.box[0] * map.element_bytes;
  uint8_t row[512] = {};
  const int64_t first = std::max(0, -start), last = std::min<int64_t>(map.box[0], map.size[0] - start);
  if (from && first < last)
    std::memcpy(row + first * map.element_bytes, from + (start + first) * map.element_bytes,
                (last - first) * map.element_bytes);
  for (int i = 0; i < bytes; i += 16) std::memcpy(memory + (map.swizzled ? swizzled(at + i) : at + i), row + i, 16);
}

inline void land_box(uint8_t* memory, uint32_t at, const TensorMap& map, const int (&start)[4]) {
  const int bytes = map.box[0] * map.element_bytes;
  const auto box = [&](int d) { return d < map.rank ? map.box[d] : 1; };
  int offset[4] = {};
  for (offset[3] = 0; offset[3] < box(3); ++offset[3])
    for (offset[2] = 0; offset[2] < box(2); ++offset[2])
      for (offset[1] = 0; offset[1] < box(1); ++offset[1], at += bytes) {
        const uint8_t* from = map.data;
        for (int d = 1; from && d < map.rank; ++d) {
          const int64_t i = start[d] + offset[d];
          from = i >= 0 && i < map.size[d] ? from + i * map.stride[d] : nullptr;
        }
        land_row(memory, at, map, from, start[0]);
      }
}

template <class... Start>
int box_bytes(void* to, const TensorMap& map, Start... start) {
  emulator::require(sizeof...(Start) == map.rank, "a box of another rank than its tensor's");
  const int bytes = map.box[0] * map.element_bytes;
  emulator::require(!map.swizzled || bytes == 128, "rows that are not as long as the swizzle");
  emulator::require(shared_address(to) % (map.swizzled ? 1024 : 128) == 0, "a box that starts at a wrong address");
  int size = bytes;
  for (int d = 1; d < map.rank; ++d) size *= map.box[d];
  shared_address(static_cast<uint8_t*>(to) + size - 1);
  return size;
}

template <class... Start>
void load_tile(void* to, const TensorMap& map, Barrier& full, Start... start) {
  const int size = box_bytes(to, map, start...);
  const uint32_t at = shared_address(to) - emulator::kBase;
  emulator::machine->copies.push_back([=, memory = emulator::self->cta->memory, &map, &full] {
    land_box(memory, at, map, {start...});
    full.land(size);
  });
}

// Lands in each CTA by itself.
template <uint16_t kMask, class... Start>
void load_tile_to_cluster(void* to, const TensorMap& map, Barrier& full, Start... start) {
  const int size = box_bytes(to, map, start...);
  const uint32_t at = shared_address(to) - emulator::kBase, barrier = shared_address(&full) - emulator::kBase;
  for (size_t rank = 0; rank < emulator::machine->ctas.size(); ++rank) {
    if (!(kMask >> rank & 1)) continue;
    emulator::machine->copies.push_back([=, cta = &emulator::machine->ctas[rank], &map] {
      emulator::require(cta->running > 0, "a copy to a CTA that has ended");
      land_box(cta->memory, at, map, {start...});
      reinterpret_cast<Barrier*>(cta->memory + barrier)->land(size);
    });
  }
}

inline void load_bytes(void* to, const void* from, int bytes, Barrier& full) {
  emulator::require(shared_address(to) % 16 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0 && bytes % 16 == 0,
                    "a run of bytes that starts or ends at a wrong address");
  emulator::machine->copies.push_back([=, &full] {
    std::memcpy(to, from, bytes);
    full.land(bytes);
  });
}
}  // namespace longlive::sm90
