#pragma once
#include <cuda_runtime.h>

namespace longlive::sm90 {
template <int kCount>
void reg_dealloc() {}
template <int kCount>
void reg_alloc() {}
template <class T>
void pin(T&) {}
template <class T>
T load_in_order(const T* p) {
  emulator::require(reinterpret_cast<uintptr_t>(p) % sizeof(T) == 0, "a load from a wrong address");
  return *p;
}
inline float4 load_shared_in_order(const float* p) { return load_in_order(reinterpret_cast<const float4*>(p)); }
template <class T>
void store(void* to, T x) {
  emulator::require(reinterpret_cast<uintptr_t>(to) % sizeof(T) == 0, "a store to a wrong address");
  std::memcpy(to, &x, sizeof x);
}
}  // namespace longlive::sm90
