#pragma once
// LL_CHECK(condition, "what ", value, ...): a failed check becomes a Python RuntimeError with that text.
// In place of STD_TORCH_CHECK, which formats through a stream: compiled by nvcc 13.0, that crashes under torch 2.11.
#include <stdexcept>
#include <string>
#include <type_traits>

namespace longlive {
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::string text;
  const auto add = [&]<class T>(const T& part) {
    if constexpr (std::is_arithmetic_v<T>) {
      text += std::to_string(part);
    } else {
      text += part;
    }
  };
  (add(parts), ...);
  throw std::runtime_error(text);
}
}  // namespace longlive

#define LL_CHECK(condition, ...)                     \
  do {                                               \
    if (!(condition)) ::longlive::fail(__VA_ARGS__); \
  } while (0)
