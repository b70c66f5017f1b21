#pragma once
#include <cuda_runtime.h>

namespace longlive::sm90 {
inline float2 load_in_order(const float2* p) { return *p; }
inline void store(void* to, uint32_t x) { memcpy(to, &x, sizeof x); }
template <class T>
void pin(T*&) {}
inline void pin(int&) {}
}  // namespace longlive::sm90
