#pragma once
#include "common/sm90/barrier.cuh"

namespace longlive::sm90 {
inline uint32_t cluster_rank() { return emulated::self().cta; }
inline void cluster_sync() {
  emulated::meet(emulated::machine->cluster, emulated::kThreads * int(emulated::machine->ctas.size()), "cluster");
}
inline uint32_t remote_address(const void* p, uint32_t rank) { return rank << 24 | shared_address(p); }
inline uint8_t* at_remote(uint32_t address) {
  if (address >> 24 >= emulated::machine->ctas.size()) emulated::die("no such CTA in the cluster");
  return emulated::machine->ctas[address >> 24].memory + ((address & 0xffffff) - emulated::kBase);
}
inline void remote_store(uint32_t to, float x) { memcpy(at_remote(to), &x, sizeof x); }
inline void remote_arrive(uint32_t barrier) { reinterpret_cast<Barrier*>(at_remote(barrier))->arrive(); }
inline void wait_for_cluster(Barrier& barrier, uint32_t parity) { barrier.wait(parity); }
}  // namespace longlive::sm90
