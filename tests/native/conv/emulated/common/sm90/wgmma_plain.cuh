#pragma once
#include "common/sm90/wgmma.cuh"

namespace longlive::sm90 {
inline uint64_t plain_descriptor(const void* matrix, int leading, int stride) {
  const auto field = [](uint32_t bytes) {
    if (bytes % 16 || bytes >> 18) emulated::die("field of a descriptor");
    return uint64_t(bytes >> 4 & 0x3fff);
  };
  return field(stride) << 32 | field(leading) << 16 | field(shared_address(matrix));
}
template <int N>
void mma_plain(float* d, uint64_t a, uint64_t b) {
  emulated::self().issued.push_back({d, a, b, N});
}
}  // namespace longlive::sm90
