#pragma once
// Parts of the programs *_sanitize.cu, which launch the kernels of csrc without torch and compare all results with the
// host's: so compute-sanitizer is done in seconds. They also compile for the emulator, as C++.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/bf16.cuh"

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

// An array of the device with a copy on the host; an allocation of its own, so that memcheck sees its end.
template <class T>
struct Array {
  std::vector<T> host;
  T* device = nullptr;

  explicit Array(size_t size, T value = {}) : host(size, value) {
    check(cudaMalloc(&device, size * sizeof(T)), "cudaMalloc");
    copy_in();
  }
  explicit Array(const std::vector<T>& values) : Array(values.size()) { host = values, copy_in(); }
  Array(const Array&) = delete;
  ~Array() { cudaFree(device); }
  void copy_in() { check(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyDefault), "copy in"); }
  void copy_out() { check(cudaMemcpy(host.data(), device, host.size() * sizeof(T), cudaMemcpyDefault), "copy out"); }
  template <class F>
  void fill(F draw) {
    for (T& x : host) x = draw();
    copy_in();
  }
};

inline std::mt19937 source{3};
inline int draw(int a, int b) { return std::uniform_int_distribution<int>(a, b)(source); }
inline float normal(float deviation = 1) { return std::normal_distribution<float>(0, deviation)(source); }

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int8_t kUnwritten = -128;  // of int8 values, which are -127 to 127

inline double wide(float x) { return x; }
inline double wide(longlive::bf16 x) { return __bfloat162float(x); }
template <class T>
T rounded(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16(x);
  }
}

// A result in T of float32 arithmetic on terms of `magnitude`: its own rounding, and float32's before.
template <class T>
bool is_close(T got, double want, double magnitude) {
  const double own = std::is_same_v<T, float> ? 0 : 0x1.01p-8;
  return std::abs(wide(got) - want) <= own * std::abs(want) + 1e-5 * magnitude + 1e-30;
}
