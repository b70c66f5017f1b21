#pragma once
// Tensors at the edge: their data, and argument checks. A failed check becomes a Python RuntimeError that names the
// argument.
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/shapes.h"

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

inline void check_shape(const Tensor& t, const char* name, IntHeaderOnlyArrayRef shape) {
  LL_CHECK(t.sizes().equals(shape), name, " must be ", text(shape), ", got ", text(t.sizes()));
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
inline void check_tensor(const Tensor& t, const char* name, IntHeaderOnlyArrayRef shape, ScalarType dtype,
                         const Tensor& like, int alignment = kVectorBytes) {
  check_shape(t, name, shape);
  check_like(t, name, dtype, like);
  check_contiguous(t, name);
  check_aligned(t, name, alignment);
}

// x is [rows, size], whole vectors and at most kMaxSize elements a row.
inline void check_rows(const Tensor& x, const char* name) {
  const int64_t vector = vector_size(x, name);
  LL_CHECK(x.dim() == 2, name, " must have 2 dimensions, got ", x.dim());
  const int64_t rows = x.size(0), size = x.size(1);
  LL_CHECK(size > 0 && size <= kMaxSize && size % vector == 0, name, " must have rows of at most ", kMaxSize,
           " elements, a multiple of ", vector, "; got ", size);
  check_tensor(x, name, {rows, size}, x.scalar_type(), x);
}

// t is [groups, size], rows of any stride, whose groups divide x's rows evenly.
inline void check_groups(const Tensor& t, const char* name, const Tensor& x) {
  LL_CHECK(t.dim() == 2, name, " must have 2 dimensions, got ", t.dim());
  LL_CHECK(t.size(0) > 0 && x.size(0) % t.size(0) == 0, name, " must have a row count that divides x's ", x.size(0),
           ", got ", t.size(0));
  check_shape(t, name, {t.size(0), x.size(1)});
  check_like(t, name, x.scalar_type(), x);
  check_aligned(t, name);
  LL_CHECK(t.stride(1) == 1 && t.stride(0) % vector_size(t, name) == 0, name,
           " must have contiguous rows that start at multiples of ", kVectorBytes, " bytes");
}

// The scales of a ring's int8 keys, [.., heads, n]: a frame is whole runs of tokens, and a head's scales may be more
// than the ring's runs. Returns n.
inline int64_t check_key_scales(const Tensor& k_scale, std::vector<int64_t> heads, int64_t ring, int64_t tokens,
                                const Tensor& like) {
  LL_CHECK(tokens % kKeyRun == 0, "k_ring must have a multiple of ", kKeyRun, " tokens a frame, got ", tokens);
  const int64_t runs = ring * tokens / kKeyRun, of_head = heads.back();
  LL_CHECK(k_scale.dim() == int64_t(heads.size()) + 1, "k_scale must have ", heads.size() + 1, " dimensions, got ",
           k_scale.dim());
  const int64_t found = k_scale.size(k_scale.dim() - 1);
  LL_CHECK(found >= runs, "k_scale must have at least ", runs, " scales a head, got ", found);
  LL_CHECK(of_head * found <= INT32_MAX, "k_scale must have fewer elements, got ", of_head * found);
  heads.push_back(found);
  check_tensor(k_scale, "k_scale", heads, ScalarType::Float, like, sizeof(float));
  return found;
}

// A warp's vectors of x are whole heads, whose elements the lanes exchange.
inline void check_whole_warps(const Tensor& x, const char* name, int64_t heads) {
  const int64_t together = 32 * vector_size(x, "x") / kHeadDim;
  LL_CHECK(heads % together == 0, name, " must have a multiple of ", together, " heads, got ", heads);
}
}  // namespace longlive
