#pragma once
#include "common/sm90/barrier.cuh"

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;

namespace longlive::sm90 {
struct TensorMap {
  const uint16_t* data;
  int64_t size[4], stride[3];
  int box[4];
};
inline TensorMap tile_map(const void* data, const cuuint64_t (&size)[4], const cuuint64_t (&stride)[3],
                          const cuuint32_t (&box)[4]) {
  TensorMap m{static_cast<const uint16_t*>(data), {}, {}, {}};
  for (int i = 0; i < 4; ++i) {
    m.size[i] = size[i], m.box[i] = box[i];
    if (box[i] < 1 || box[i] > 256) emulated::die("box");
  }
  for (int i = 0; i < 3; ++i) {
    m.stride[i] = stride[i];
    if (stride[i] % 16) emulated::die("stride of a tensor map");
  }
  if (box[0] * 2 % 16) emulated::die("inner box");
  return m;
}
inline void prefetch_map(const TensorMap&) {}

inline void load_tile(void* to, const TensorMap& map, int c0, int c1, int c2, int c3, Barrier& landed) {
  if (shared_address(to) % 128) emulated::die("a box must land at a multiple of 128");
  emulated::copy([=, &map, &landed] {
    auto* out = static_cast<uint16_t*>(to);
    for (int l = 0; l < map.box[3]; ++l)
      for (int k = 0; k < map.box[2]; ++k)
        for (int j = 0; j < map.box[1]; ++j)
          for (int i = 0; i < map.box[0]; ++i) {
            const int64_t at[4] = {c0 + i, c1 + j, c2 + k, c3 + l};
            bool inside = true;
            for (int d = 0; d < 4; ++d) inside &= at[d] >= 0 && at[d] < map.size[d];
            const int64_t bytes = at[1] * map.stride[0] + at[2] * map.stride[1] + at[3] * map.stride[2];
            *out++ = inside ? map.data[at[0] + bytes / 2] : 0;
          }
    landed.land(2 * map.box[0] * map.box[1] * map.box[2] * map.box[3]);
  });
}
inline void load_bytes(void* to, const void* from, int bytes, Barrier& landed) {
  if (shared_address(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16) emulated::die("run of bytes");
  emulated::copy([=, &landed] {
    memcpy(to, from, bytes);
    landed.land(bytes);
  });
}
}  // namespace longlive::sm90
