#pragma once
#include <cuda_runtime.h>

namespace longlive::sm90 {
inline uint32_t shared_address(const void* p) {
  const auto offset = static_cast<const uint8_t*>(p) - emulator::self->cta->memory;
  emulator::require(offset >= 0 && size_t(offset) < emulator::machine->shared_bytes,
                    "an address outside of this CTA's shared memory");
  return uint32_t(offset) + emulator::kBase;
}

template <class T>
T& shared_memory() {
  emulator::require(sizeof(T) <= emulator::machine->shared_bytes, "less shared memory than the kernel uses");
  return *reinterpret_cast<T*>(emulator::self->cta->memory);
}

struct alignas(8) Barrier {
  int32_t bytes;
  uint8_t phase, arrivals, pending, alive;

  void init(int count) { bytes = 0, phase = 0, arrivals = pending = uint8_t(count), alive = 0x5a; }
  void check() const { emulator::require(alive == 0x5a, "a barrier that is not initialised"); }
  void complete() {
    if (pending == 0 && bytes == 0) phase ^= 1, pending = arrivals;
  }
  void arrive() { arrive_and_expect(0); }
  void arrive_and_expect(int more) {
    check();
    emulator::require(pending > 0, "a barrier with more arrivals than a phase has");
    bytes += more, --pending;
    complete();
  }
  void land(int count) {
    check();
    bytes -= count;
    complete();
  }
  void wait(uint32_t parity) {
    check();
    emulator::wait_until(parity ? "a barrier's phase 1" : "a barrier's phase 0", this,
                         [this, parity] { return phase != parity; });
  }
};
static_assert(sizeof(Barrier) == 8);

inline void fence_barrier_init() {}
inline void fence_proxy_async() {}
}  // namespace longlive::sm90
