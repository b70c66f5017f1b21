#pragma once
#include "cuda_runtime.h"

namespace longlive::sm90 {
inline uint32_t shared_address(const void* p) {
  const auto offset = static_cast<const uint8_t*>(p) - emulator::shared;
  emulator::require(offset >= 0 && offset < emulator::kSharedBytes, "an address outside of shared memory");
  return uint32_t(offset);
}

struct alignas(8) Barrier {
  int16_t arrivals, pending;
  uint32_t bytes_and_phase;  // 24 and 8 bits

  int bytes() const { return int(bytes_and_phase << 8) >> 8; }
  int phase() const { return int(bytes_and_phase >> 24); }
  void set(int bytes, int phase) { bytes_and_phase = (uint32_t(bytes) & 0xffffff) | uint32_t(phase) << 24; }
  void init(int count) { arrivals = pending = int16_t(count), set(0, 0); }
  void turn() {
    if (pending == 0 && bytes() == 0) pending = arrivals, set(0, phase() + 1);
  }
  void arrive() { arrive_and_expect(0); }
  void arrive_and_expect(int count) {
    emulator::require(--pending >= 0, "a barrier with more arrivals than a phase has");
    set(bytes() + count, phase());
    turn();
  }
  void land(int count) { set(bytes() - count, phase()), turn(); }
  void wait(uint32_t parity) {
    emulator::wait_until([this, parity] { return uint32_t(phase() & 1) != parity; });
  }
};
static_assert(sizeof(Barrier) == 8);

inline void fence_barrier_init() {}
inline void fence_proxy_async() {}
template <int kCount>
void registers_give() {}
template <int kCount>
void registers_take() {}
}  // namespace longlive::sm90
