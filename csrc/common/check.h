#pragma once
// Tensors at the edge: their data, and argument checks. A failed check becomes a Python RuntimeError that names the
// argument.
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "common/error.h"

namespace longlive {
using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kVectorBytes = 16;

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Elements of t in one vector; refuses a dtype that the kernels do not compute in.
inline int64_t vector_size(const Tensor& t, const char* name) {
  const bool narrow = t.scalar_type() == ScalarType::BFloat16;
  LL_CHECK(narrow || t.scalar_type() == ScalarType::Float, name, " must be bfloat16 or float32");
  return kVectorBytes / (narrow ? 2 : 4);
}

inline std::string text(IntHeaderOnlyArrayRef shape) {
  std::string s = "[";
  for (const int64_t size : shape) s += (s.size() > 1 ? ", " : "") + std::to_string(size);
  return s + "]";
}

inline void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> shape) {
  const IntHeaderOnlyArrayRef want(shape.begin(), shape.size());
  LL_CHECK(t.sizes().equals(want), name, " must be ", text(want), ", got ", text(t.sizes()));
}

inline void check_like(const Tensor& t, const char* name, ScalarType dtype, const Tensor& like) {
  LL_CHECK(t.scalar_type() == dtype, name, " must be ", toString(dtype), ", got ", toString(t.scalar_type()));
  LL_CHECK(t.is_cuda() && t.get_device_index() == like.get_device_index(), name,
                  " must be on the device of the others");
}

inline void check_aligned(const Tensor& t, const char* name, int bytes = kVectorBytes) {
  LL_CHECK(reinterpret_cast<uintptr_t>(t.data_ptr()) % bytes == 0, name, " must start at a multiple of ", bytes,
                  " bytes");
}

inline void check_contiguous(const Tensor& t, const char* name) {
  LL_CHECK(t.is_contiguous(), name, " must be contiguous");
}

// All of that: t is contiguous, of this shape and dtype, beside `like`, and starts at a multiple of `alignment` bytes.
inline void check_tensor(const Tensor& t, const char* name, std::initializer_list<int64_t> shape, ScalarType dtype,
                         const Tensor& like, int alignment = kVectorBytes) {
  check_shape(t, name, shape);
  check_like(t, name, dtype, like);
  check_contiguous(t, name);
  check_aligned(t, name, alignment);
}
}  // namespace longlive
