#pragma once
// Sizes that several kernels are built for, and integer arithmetic; host and device.
#include <type_traits>

namespace longlive {
constexpr int kHeadDim = 128;   // channels of an attention head
constexpr int kMaxSize = 1536;  // elements of a row that a warp or a block holds in registers
constexpr int kMaxHeads = kMaxSize / kHeadDim;
constexpr int kKeyRun = 8;  // keys in a row, of a head, that share a scale where they are int8

constexpr int kValueGroup = 16;  // values that share 16 bytes where they are e4m3, transposed

// Where they lie in their group: position j has this one. So the accumulator of q k^T is the operand of p v.
constexpr int value_at(int j) { return j % 4 / 2 * 8 + j / 4 * 2 + j % 2; }

constexpr int kSharedBytes = 232448;  // of shared memory that a CTA can have on Hopper

template <class A, class B>
constexpr std::common_type_t<A, B> ceil_div(A a, B b) {
  return (a + b - 1) / b;
}
}  // namespace longlive
