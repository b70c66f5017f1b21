#pragma once
#include <cuda_runtime.h>

namespace longlive::sm90 {
inline uint32_t shared_address(const void* p) {
  const auto at = static_cast<const uint8_t*>(p) - emulated::cta().memory;
  if (at < 0 || size_t(at) >= emulated::cta().storage.size()) emulated::die("not in this CTA's shared memory");
  return uint32_t(at) + emulated::kBase;
}

struct alignas(8) Barrier {
  int32_t bytes;
  uint8_t phase, count, missing, alive;

  void init(int arrivals) { bytes = 0, phase = 0, count = missing = uint8_t(arrivals), alive = 0x5a; }
  void check() const {
    if (alive != 0x5a) emulated::die("a barrier that is not initialised");
  }
  void turn() {
    if (missing == 0 && bytes == 0) phase ^= 1, missing = count;
  }
  void arrive() {
    check();
    if (missing-- == 0) emulated::die("one arrival too many");
    turn();
  }
  void arrive_and_expect(int more) {
    bytes += more;
    arrive();
  }
  void land(int done) {
    check();
    bytes -= done;
    turn();
  }
  void wait(uint32_t parity) {
    check();
    emulated::wait_until("barrier", [&] { return phase != parity; });
  }
};

inline void fence_barrier_init() {}
template <int kCount>
void registers_give() {}
template <int kCount>
void registers_take() {}
}  // namespace longlive::sm90
