#pragma once
#include "common/sm90/barrier.cuh"

namespace longlive::sm90 {
inline uint32_t cluster_rank() { return uint32_t(emulator::self->rank); }
inline void cluster_sync() {
  emulator::meet(emulator::machine->cluster, unsigned(emulator::machine->threads.size()), "its cluster");
}
inline void cluster_meet() { cluster_sync(); }
inline uint32_t remote_address(const void* p, uint32_t rank) { return rank << 24 | shared_address(p); }
inline uint8_t* at_remote(uint32_t address) {
  emulator::require(address >> 24 < emulator::machine->ctas.size(), "no such CTA in the cluster");
  return emulator::machine->ctas[address >> 24].memory + ((address & 0xffffff) - emulator::kBase);
}
inline void remote_store(uint32_t to, float x) { std::memcpy(at_remote(to), &x, sizeof x); }
inline void remote_arrive(uint32_t barrier) { reinterpret_cast<Barrier*>(at_remote(barrier))->arrive(); }
inline void remote_release(uint32_t barrier) { remote_arrive(barrier); }
inline void wait_for_cluster(Barrier& barrier, uint32_t parity) { barrier.wait(parity); }
}  // namespace longlive::sm90
