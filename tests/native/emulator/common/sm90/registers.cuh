#pragma once
#include <cuda_runtime.h>

namespace longlive::sm90 {
template <int kCount>
void reg_dealloc() {}
template <int kCount>
void reg_alloc() {}
template <class T>
void pin(T&) {}
inline float2 load_in_order(const float2* p) { return *p; }
inline void store(void* to, uint32_t x) { std::memcpy(to, &x, sizeof x); }
}  // namespace longlive::sm90
