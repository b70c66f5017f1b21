// The kernels of csrc/elementwise that write int8, and their forms that do not, without torch: rows and keys at ragged
// sizes, rings that wrap around, rows of zeros and of NaN. See sanitize.h.
//   nvcc -O2 -std=c++20 -gencode arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -lineinfo -Icsrc
//        tests/native/keys_sanitize.cu -o keys_sanitize && compute-sanitizer --tool racecheck ./keys_sanitize
#include <algorithm>

#include "elementwise/modulate_norm.cuh"
#include "elementwise/qk_norm_rope_store.cuh"
#include "elementwise/quantize.cuh"
#include "elementwise/quantize_keys.cuh"
#include "elementwise/quantize_values.cuh"
#include "elementwise/residual_norm.cuh"
#include "elementwise/rotate_sinks.cuh"
#include "sanitize.h"

using namespace longlive;

constexpr float kEps = 1e-6f;

template <class T>
constexpr const char* kName = std::is_same_v<T, float>  ? "float32"
                              : std::is_same_v<T, bf16> ? "bfloat16"
                                                        : "int8";

template <class P>
void run(void (*kernel)(const P), unsigned blocks, unsigned threads, const P& params) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks, config.blockDim = threads;
  check(cudaLaunchKernelEx(&config, kernel, params), "launch");
  check(cudaDeviceSynchronize(), "kernel");
}

// ---------------------------------------------------------------------------------------------------------------------
// What int8 must be.

// at(i) is want[i] in steps of `scale`: half a step at most, but for float32's error before. What is not finite shows
// in the scale.
template <class At>
bool is_quantised(const std::vector<double>& want, At at, float scale) {
  double largest = 0;
  for (const double x : want) {
    if (!std::isfinite(x)) return !std::isfinite(scale);
    largest = std::max(largest, std::abs(x));
  }
  const double step = largest < 0x1p-100 ? 0 : largest / 127;
  if (!(std::abs(scale - step) <= 1e-5 * step)) return false;
  for (size_t i = 0; i < want.size(); ++i)
    if (step == 0 ? at(i) != 0 : at(i) == kUnwritten || std::abs(at(i) * step - want[i]) > 0.505 * step) return false;
  return true;
}

// A head's channels [128], times a Hadamard matrix.
std::vector<double> mixed(const double* x) {
  std::vector<double> y(kHeadDim);
  for (int i = 0; i < kHeadDim; ++i) {
    for (int j = 0; j < kHeadDim; ++j) y[i] += __builtin_popcount(i & j) % 2 ? -x[j] : x[j];
    y[i] /= std::sqrt(double(kHeadDim));
  }
  return y;
}

// keys [tokens, size], rotated. `values` and `scale` are the frame's first, `scales` from one head's to the next one's.
bool are_int8_keys(const std::vector<double>& keys, const float* offset, const int8_t* values, const float* scale,
                   int scales, int size) {
  const int tokens = int(keys.size()) / size;
  for (int head = 0; head < size / kHeadDim; ++head)
    for (int first = 0; first < tokens; first += kKeyRun) {
      std::vector<double> run;
      for (int token = first; token < first + kKeyRun; ++token) {
        double key[kHeadDim];
        for (int i = 0; i < kHeadDim; ++i) {
          const int at = head * kHeadDim + i;
          key[i] = keys[size_t(token) * size + at] - offset[at];
        }
        for (const double x : mixed(key)) run.push_back(x);
      }
      const auto at = [&](size_t i) { return values[(first + i / kHeadDim) * size + head * kHeadDim + i % kHeadDim]; };
      if (!is_quantised(run, at, scale[head * scales + first / kKeyRun])) return false;
    }
  return true;
}

// Each head of a query has a scale.
bool are_int8_queries(const std::vector<double>& queries, const int8_t* values, const float* scale, int scales,
                      int size) {
  for (size_t from = 0; from < queries.size(); from += kHeadDim) {
    const auto at = [&](size_t i) { return values[from + i]; };
    if (!is_quantised(mixed(&queries[from]), at, scale[from % size / kHeadDim * scales + from / size])) return false;
  }
  return true;
}

// Nothing of [from, from + count) is written.
bool unwritten(const int8_t* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (from[i] != kUnwritten) return false;
  return true;
}
template <class T>
bool unwritten(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!std::isnan(wide(from[i]))) return false;
  return true;
}
template <class T>
T poison() {
  if constexpr (std::is_same_v<T, int8_t>) {
    return kUnwritten;
  } else {
    return rounded<T>(kNaN);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// quantize

// Rows of quite different size; the second is zero, the third as good as that, the fourth not finite.
template <class T>
bool quantizes(int rows, int size) {
  Array<T> x(size_t(rows) * size);
  Array<int8_t> values(x.host.size(), kUnwritten);
  Array<float> scale(rows, kNaN);
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < size; ++i) {
      const float of_row = row == 1 ? 0 : row == 2 ? 0x1p-110f : std::ldexp(1.f, row * 7 % 40 - 20);
      x.host[size_t(row) * size + i] = rounded<T>(row == 3 && i == size / 2 ? kNaN : of_row * normal());
    }
  x.copy_in();
  const QuantizeParams<T> p{x.device, values.device, scale.device, rows, size};
  run(quantize_kernel<T>, blocks_for_rows(rows), kThreads, p);
  values.copy_out(), scale.copy_out();
  bool good = true;
  for (int row = 0; row < rows; ++row) {
    std::vector<double> want;
    for (int i = 0; i < size; ++i) want.push_back(wide(x.host[size_t(row) * size + i]));
    good &= is_quantised(want, [&](size_t i) { return values.host[size_t(row) * size + i]; }, scale.host[row]);
  }
  if (!good) std::printf("quantize: %d rows of %d %s\n", rows, size, kName<T>);
  return good;
}

// ---------------------------------------------------------------------------------------------------------------------
// The norms

// Rows of T or int8, with their scales.
template <class Out>
struct Rows {
  const int size;
  Array<Out> out;
  Array<float> scale;

  Rows(int rows, int size) : size(size), out(size_t(rows) * size, poison<Out>()), scale(rows, kNaN) {}
  void copy_out() { out.copy_out(), scale.copy_out(); }

  // The norm of x [size] times (offset + a), plus b.
  template <class T>
  bool agree(int row, const T* x, double offset, const T* a, const T* b) const {
    double mean = 0, variance = 0;
    for (int i = 0; i < size; ++i) mean += wide(x[i]) / size;
    for (int i = 0; i < size; ++i) variance += (wide(x[i]) - mean) * (wide(x[i]) - mean) / size;
    std::vector<double> want;
    for (int i = 0; i < size; ++i)
      want.push_back((wide(x[i]) - mean) / std::sqrt(variance + kEps) * (offset + wide(a[i])) + wide(b[i]));
    const Out* got = &out.host[size_t(row) * size];
    if constexpr (std::is_same_v<Out, int8_t>) {
      return is_quantised(want, [&](size_t i) { return got[i]; }, scale.host[row]);
    } else {
      for (int i = 0; i < size; ++i)
        if (!is_close(got[i], want[i], std::abs(want[i]) + std::abs(wide(b[i])) + 1)) return false;
      return true;
    }
  }
};

// groups [count, size], rows `stride` apart; what lies between them is NaN.
template <class T>
Array<T> group_rows(int count, int size, int stride) {
  std::vector<T> rows(size_t(count - 1) * stride + size, rounded<T>(kNaN));
  for (int group = 0; group < count; ++group)
    for (int i = 0; i < size; ++i) rows[size_t(group) * stride + i] = rounded<T>(normal(0.5f));
  return Array<T>(rows);
}

template <class T>
std::vector<T> noise(size_t count, float deviation = 1, float mean = 0) {
  std::vector<T> x(count);
  for (T& value : x) value = rounded<T>(mean + normal(deviation));
  return x;
}

template <class T, class Out>
bool modulates(int rows, int groups, int size) {
  const int stride = size + 16, per_group = rows / groups;
  const Array<T> x(noise<T>(size_t(rows) * size, 2, 3));
  const Array<T> shift = group_rows<T>(groups, size, size), scale = group_rows<T>(groups, size, stride);
  Rows<Out> out(rows, size);
  const ModulateNormParams<T, Out> p{x.device, shift.device, scale.device, out.out.device, out.scale.device,  size,
                                     stride,   rows,         per_group,    size,           1.f / float(size), kEps};
  run(modulate_norm_kernel<T, Out>, blocks_for_rows(rows), kThreads, p);
  out.copy_out();
  bool good = true;
  for (int row = 0; row < rows; ++row)
    good &= out.agree(row, &x.host[size_t(row) * size], 1, &scale.host[size_t(row / per_group) * stride],
                      &shift.host[size_t(row / per_group) * size]);
  if (!good) std::printf("modulate_norm: %d rows of %d %s to %s\n", rows, size, kName<T>, kName<Out>);
  return good;
}

template <class T, class Out>
bool adds(int rows, int groups, int size, bool gated, float offset) {
  const int stride = size + 16, per_group = rows / groups;
  Array<T> x(noise<T>(size_t(rows) * size, 2, 3));
  const Array<T> y(noise<T>(size_t(rows) * size));
  const Array<T> gate = group_rows<T>(groups, size, stride), shift = group_rows<T>(1, size, size);
  const Array<T> scale = group_rows<T>(groups, size, stride);
  Rows<Out> out(rows, size);
  const ResidualNormParams<T, Out> p{x.device,
                                     y.device,
                                     out.out.device,
                                     out.scale.device,
                                     {gated ? gate.device : nullptr, gated ? stride : 0, per_group},
                                     {shift.device, size, rows},
                                     {scale.device, stride, per_group},
                                     size,
                                     1.f / float(size),
                                     offset,
                                     kEps};
  run(residual_norm_kernel<T, Out>, rows, BlockRow<T>::kThreads, p);
  std::vector<T> sum = x.host;
  for (int i = 0; i < int(sum.size()); ++i) {
    const int group = i / size / per_group;
    const float g = gated ? float(wide(gate.host[size_t(group) * stride + i % size])) : 1;
    sum[i] = rounded<T>(std::fma(float(wide(y.host[i])), g, float(wide(sum[i]))));
  }
  x.copy_out(), out.copy_out();
  bool good = true;
  for (int i = 0; i < int(sum.size()); ++i) good &= wide(x.host[i]) == wide(sum[i]);
  for (int row = 0; row < rows; ++row)
    good &=
        out.agree(row, &sum[size_t(row) * size], offset, &scale.host[size_t(row / per_group) * stride], &shift.host[0]);
  if (!good) std::printf("residual_norm: %d rows of %d %s to %s\n", rows, size, kName<T>, kName<Out>);
  return good;
}

// ---------------------------------------------------------------------------------------------------------------------
// Keys

// Tables of rotations, and what they do.
struct Turns {
  static constexpr int kTimePairs = 22;
  Array<float2> time, space;

  Turns(int frames, int tokens) : time(size_t(frames) * kTimePairs), space(size_t(tokens) * (kPairs - kTimePairs)) {
    const auto turn = [] {
      const float angle = normal(3);
      return float2{std::cos(angle), std::sin(angle)};
    };
    time.fill(turn), space.fill(turn);
  }
  Rope rope() const { return {time.device, space.device, kTimePairs}; }

  // x [size], a token, in place.
  void apply(double* x, int size, int frame, int token) const {
    for (int i = 0; i < size; i += 2) {
      const int pair = i % kHeadDim / 2;
      const float2 by = pair < kTimePairs ? time.host[frame * kTimePairs + pair]
                                          : space.host[token * (kPairs - kTimePairs) + pair - kTimePairs];
      const double re = x[i], im = x[i + 1];
      x[i] = re * by.x - im * by.y, x[i + 1] = re * by.y + im * by.x;
    }
  }
};

template <class T>
bool are_close(const T* got, const std::vector<double>& want) {
  double largest = 0;
  for (const double x : want) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < want.size(); ++i)
    if (!is_close(got[i], want[i], largest)) return false;
  return true;
}

// Keys in a ring: T's or int8's, with scales and offsets. Of each head there are `kSpare` scales more than needed.
template <class Key>
struct Ring {
  static constexpr bool kInt8 = std::is_same_v<Key, int8_t>;
  static constexpr int kSpare = 3;
  const int slots, tokens, size, scales;
  Array<Key> keys;
  Array<float> scale;
  Array<float> offset;

  Ring(int slots, int tokens, int heads, int layers = 1)
      : slots(slots),
        tokens(tokens),
        size(heads * kHeadDim),
        scales(slots * tokens / kKeyRun + kSpare),
        keys(size_t(layers) * slots * tokens * size, poison<Key>()),
        scale(size_t(layers) * heads * scales, kNaN),
        offset(noise<float>(size_t(layers) * size)) {}
  void copy_out() { keys.copy_out(), scale.copy_out(); }

  // want [tokens, size], rotated, are the keys of a slot.
  bool agrees(int slot, const std::vector<double>& want, int layer = 0) const {
    if constexpr (kInt8) {
      return are_int8_keys(want, &offset.host[size_t(layer) * size], keys_of(slot, layer), scales_of(slot, layer),
                           scales, size);
    } else {
      return are_close(keys_of(slot, layer), want);
    }
  }
  bool has_not(int slot, int layer = 0) const {
    bool good = unwritten(keys_of(slot, layer), int64_t(tokens) * size);
    for (int head = 0; head < size / kHeadDim; ++head)
      good &= unwritten(scales_of(slot, layer) + head * scales, tokens / kKeyRun);
    return good;
  }
  bool spares() const {
    bool good = true;
    for (size_t end = scales; end <= scale.host.size(); end += scales)
      good &= unwritten(&scale.host[end - kSpare], kSpare);
    return good;
  }

 private:
  const Key* keys_of(int slot, int layer) const {
    return keys.host.data() + (size_t(layer) * slots + slot) * tokens * size;
  }
  const float* scales_of(int slot, int layer) const {
    return scale.host.data() + size_t(layer) * (size / kHeadDim) * scales + slot * tokens / kKeyRun;
  }
};

bool contains(const std::vector<int64_t>& slots, int slot) {
  for (const int64_t x : slots)
    if (x == slot) return true;
  return false;
}

// Tokens of quite different size; one run is at the offset, which makes its scale 0, another has a NaN.
template <class T>
bool quantizes_keys(const std::vector<int64_t>& slots, int tokens, int heads, int slots_of_ring) {
  const int size = heads * kHeadDim, count = int(slots.size());
  Ring<int8_t> ring(slots_of_ring, tokens, heads);
  ring.offset.fill([] { return float(wide(rounded<T>(normal()))); });
  Array<T> k(size_t(count) * tokens * size);
  for (size_t i = 0; i < k.host.size(); ++i) {
    const size_t token = i / size;
    k.host[i] =
        rounded<T>(token / kKeyRun == 1 ? ring.offset.host[i % size] : std::ldexp(normal(), int(token * 5 % 24) - 12));
  }
  if (count * tokens > 2 * kKeyRun) k.host[size_t(2 * kKeyRun) * size + 77] = rounded<T>(kNaN);
  k.copy_in();
  const Array<int64_t> slot(slots);
  const QuantizeKeysParams<T> p{k.device,    ring.offset.device, ring.keys.device, ring.scale.device,
                                slot.device, tokens / kKeyRun,   ring.scales,      size};
  run(quantize_keys_kernel<T>, blocks_for_runs(count * tokens), kRunThreads, p);
  ring.copy_out();
  bool good = ring.spares();
  for (int frame = 0; frame < count; ++frame) {
    std::vector<double> want;
    for (int i = 0; i < tokens * size; ++i) want.push_back(wide(k.host[size_t(frame) * tokens * size + i]));
    good &= ring.agrees(int(slots[frame]), want);
  }
  for (int i = 0; i < slots_of_ring; ++i) good &= contains(slots, i) || ring.has_not(i);
  if (!good) std::printf("quantize_keys: %d frames of %d %s tokens, %d heads\n", count, tokens, kName<T>, heads);
  return good;
}

// The number of an e4m3; of 0x7f NaN.
float e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, eighths = bits & 7;
  const float size = exponent ? std::ldexp(8.f + eighths, exponent - 10) : std::ldexp(float(eighths), -9);
  return (bits & 0x7f) == 0x7f ? kNaN : bits >> 7 ? -size : size;
}
// The nearest e4m3, of two the even one; NaN beyond the largest.
uint8_t nearest_e4m3(float x) {
  if (!(std::abs(x) <= 448)) return 0x7f;
  uint8_t best = 0;
  for (uint8_t bits = 1; bits < 0x7f; ++bits) {
    const double before = std::abs(double(std::abs(x)) - e4m3(best)), now = std::abs(double(std::abs(x)) - e4m3(bits));
    if (now < before || (now == before && bits % 2 == 0)) best = bits;
  }
  return best | std::signbit(x) << 7;
}

template <class T>
bool quantizes_values(const std::vector<int64_t>& slots, int tokens, int size, int slots_of_ring, int gap = 0) {
  const int frames = int(slots.size()), stride = size + gap;
  const int64_t room = ceil_div(int64_t(slots_of_ring) * tokens, kValueGroup) * kValueGroup;
  constexpr uint8_t kOther = 0x55;
  Array<T> v(size_t(frames) * tokens * stride, rounded<T>(kNaN));
  Array<float> offset(noise<float>(size)), scale(size);
  Array<uint8_t> v_ring(size_t(size) * room, kOther);
  scale.fill([] { return std::ldexp(1 + std::abs(normal()), draw(-9, 3)); });
  scale.host[size / 2] = 0;
  scale.copy_in();
  for (int token = 0; token < frames * tokens; ++token)
    for (int i = 0; i < size; ++i)
      v.host[size_t(token) * stride + i] = rounded<T>(token == 3 && i == 5   ? kNaN
                                                      : token == 4 && i == 6 ? -1 / 0.f
                                                                             : std::ldexp(normal(), draw(-9, 9)));
  v.copy_in();
  const Array<int64_t> slot(slots);
  const int tiles = value_tiles(tokens), parts = size / kTileChannels<T>;
  const QuantizeValuesParams<T> p{v.device, offset.device, scale.device, v_ring.device, slot.device,
                                  stride,   room,          tokens,       tiles,         parts};
  run(quantize_values_kernel<T>, frames * tiles * parts, kTileThreads, p);
  v_ring.copy_out();
  std::vector<uint8_t> want(v_ring.host.size(), kOther);
  for (int token = 0; token < frames * tokens; ++token)
    for (int i = 0; i < size; ++i) {
      constexpr int kOrder[] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
      const int64_t at = slots[token / tokens] * tokens + token % tokens;
      const int place = int(std::find(kOrder, kOrder + 16, at % 16) - kOrder);
      const float x = float(wide(v.host[size_t(token) * stride + i])) - offset.host[i];
      want[i * room + at / 16 * 16 + place] = nearest_e4m3(x * (1 / scale.host[i]));
    }
  const bool good = want == v_ring.host;
  if (!good) std::printf("quantize_values: %d frames of %d %s tokens, %d channels\n", frames, tokens, kName<T>, size);
  return good;
}

template <class T, class Key>
bool rotates(int layers, int sinks, int tokens, int heads, int slots) {
  const int size = heads * kHeadDim, rows = layers * sinks * tokens;
  Ring<Key> ring(slots, tokens, heads, layers);
  const Array<T> k_sink(noise<T>(size_t(rows) * size));
  const Turns turns(sinks, tokens);
  if constexpr (std::is_same_v<Key, int8_t>) {
    const Int8Ring out{ring.keys.device, ring.scale.device, ring.offset.device, ring.scales};
    const RotateSinksParams<T, Int8Ring> p{k_sink.device, turns.rope(), out, rows, sinks, slots, tokens, size};
    run(rotate_sinks_kernel_int8<T>, blocks_for_runs(rows), kRunThreads, p);
  } else {
    const RotateSinksParams<T, PlainRing<T>> p{k_sink.device, turns.rope(), {ring.keys.device}, rows, sinks, slots,
                                               tokens,        size};
    run(rotate_sinks_kernel<T>, blocks_for_rows(rows), kThreads, p);
  }
  ring.copy_out();
  bool good = ring.spares();
  for (int layer = 0; layer < layers; ++layer)
    for (int slot = 0; slot < slots; ++slot) {
      if (slot >= sinks) {
        good &= ring.has_not(slot, layer);
        continue;
      }
      std::vector<double> want;
      const size_t from = size_t(layer * sinks + slot) * tokens * size;
      for (int i = 0; i < tokens * size; ++i) want.push_back(wide(k_sink.host[from + i]));
      for (int token = 0; token < tokens; ++token) turns.apply(&want[size_t(token) * size], size, slot, token);
      good &= ring.agrees(slot, want, layer);
    }
  if (!good) std::printf("rotate_sinks: %d sinks of %d %s tokens to %s\n", sinks, tokens, kName<T>, kName<Key>);
  return good;
}

// The QKV product of some frames [frames * tokens, 3, size], and what becomes of it.
template <class T>
struct Pass {
  const int frames, tokens, size;
  const Array<T> qkv, q_gain, k_gain;
  const Turns turns;

  Pass(int frames, int tokens, int size)
      : frames(frames),
        tokens(tokens),
        size(size),
        qkv(noise<T>(size_t(3) * frames * tokens * size, 4)),
        q_gain(noise<T>(size, 0.5f, 1)),
        k_gain(noise<T>(size, 0.5f, 1)),
        turns(frames, tokens) {}

  // Queries, keys (part 1) or values of a frame [tokens, size], as they came.
  std::vector<double> plain(int frame, int part) const {
    std::vector<double> x;
    for (int token = frame * tokens; token < (frame + 1) * tokens; ++token)
      for (int i = 0; i < size; ++i) x.push_back(wide(qkv.host[(size_t(token) * 3 + part) * size + i]));
    return x;
  }
  std::vector<double> normed(int frame, int part) const {
    std::vector<double> x = plain(frame, part);
    const Array<T>& gain = part == 0 ? q_gain : k_gain;
    for (size_t first = 0; first < x.size(); first += size) {
      double square = 0;
      for (int i = 0; i < size; ++i) square += x[first + i] * x[first + i] / size;
      for (int i = 0; i < size; ++i) x[first + i] *= wide(gain.host[i]) / std::sqrt(square + kEps);
    }
    return x;
  }
  std::vector<double> rotated(int frame, int part) const {
    std::vector<double> x = normed(frame, part);
    for (int token = 0; token < tokens; ++token) turns.apply(&x[size_t(token) * size], size, frame, token);
    return x;
  }
};

template <class T>
bool are_equal(const T* got, const std::vector<double>& want) {
  bool good = true;
  for (size_t i = 0; i < want.size(); ++i) good &= wide(got[i]) == want[i];
  return good;
}

template <class T, class Key>
bool stores(const std::vector<int64_t>& slots, int tokens, int heads, int slots_of_ring, int sinks,
            bool values = true) {
  const int size = heads * kHeadDim, frames = int(slots.size()), queries = frames * tokens, rows = 3 * queries;
  const Pass<T> pass(frames, tokens, size);
  const Array<int64_t> slot(slots);
  Ring<Key> ring(slots_of_ring, tokens, heads);
  Array<T> v_ring(size_t(slots_of_ring) * tokens * size, rounded<T>(kNaN));
  Array<T> k_sink(size_t(sinks) * tokens * size, rounded<T>(kNaN));
  Array<Key> q(size_t(queries) * size, poison<Key>());
  Array<float> q_scale(size_t(heads) * queries, kNaN);
  const auto params = [&]<class Out>(const Out& out) {
    return StoreParams<T, Out>{pass.qkv.device,
                               pass.q_gain.device,
                               pass.k_gain.device,
                               pass.turns.rope(),
                               out,
                               values ? v_ring.device : nullptr,
                               k_sink.device,
                               slot.device,
                               rows,
                               tokens,
                               size,
                               sinks,
                               1.f / float(size),
                               kEps};
  };
  if constexpr (std::is_same_v<Key, int8_t>) {
    const Int8Out out{q.device,           ring.keys.device, q_scale.device, ring.scale.device,
                      ring.offset.device, queries,          ring.scales};
    const auto kernel = values ? qk_norm_rope_store_kernel_int8<T, true> : qk_norm_rope_store_kernel_int8<T, false>;
    run(kernel, blocks_for_runs(rows), kRunThreads, params(out));
  } else {
    run(qk_norm_rope_store_kernel<T>, blocks_for_rows(rows), kThreads, params(PlainOut<T>{q.device, ring.keys.device}));
  }
  ring.copy_out(), v_ring.copy_out(), k_sink.copy_out(), q.copy_out(), q_scale.copy_out();

  bool good = ring.spares();
  const int64_t of_frame = int64_t(tokens) * size;
  for (int frame = 0; frame < frames; ++frame) {
    const int64_t at = slots[frame] * of_frame;
    good &= ring.agrees(int(slots[frame]), pass.rotated(frame, 1));
    good &= values ? are_equal(&v_ring.host[at], pass.plain(frame, 2)) : unwritten(&v_ring.host[at], of_frame);
    if (slots[frame] < sinks) good &= are_close(&k_sink.host[at], pass.normed(frame, 1));
    const std::vector<double> want = pass.rotated(frame, 0);
    if constexpr (std::is_same_v<Key, int8_t>) {
      good &= are_int8_queries(want, &q.host[frame * of_frame], &q_scale.host[frame * tokens], queries, size);
    } else {
      good &= are_close(&q.host[frame * of_frame], want);
    }
  }
  for (int i = 0; i < slots_of_ring; ++i) {
    if (contains(slots, i)) continue;
    good &= ring.has_not(i) && unwritten(v_ring.host.data() + i * of_frame, of_frame);
    if (i < sinks) good &= unwritten(k_sink.host.data() + i * of_frame, of_frame);
  }
  if (!good)
    std::printf("qk_norm_rope_store: %d frames of %d %s tokens, %d heads, to %s\n", frames, tokens, kName<T>, heads,
                kName<Key>);
  return good;
}

// ---------------------------------------------------------------------------------------------------------------------

template <class T>
bool all_of_rows() {
  bool good = true;
  for (const int size : {16 / int(sizeof(T)), 1000, kMaxSize})
    for (const int rows : {1, 4, 21}) good &= quantizes<T>(rows, size);
  for (const int size : {16 / int(sizeof(T)), 1000, kMaxSize}) {
    good &= modulates<T, int8_t>(1, 1, size) && modulates<T, int8_t>(6, 3, size) && modulates<T, int8_t>(9, 1, size);
    good &= modulates<T, T>(1, 1, size) && modulates<T, T>(6, 3, size) && modulates<T, T>(9, 1, size);
    good &= adds<T, int8_t>(1, 1, size, false, 0) && adds<T, int8_t>(6, 3, size, true, 1);
    good &= adds<T, T>(1, 1, size, false, 0) && adds<T, T>(6, 3, size, true, 1);
  }
  return good;
}

template <class T>
bool all_of_keys() {
  constexpr int kFew = sizeof(T) == 2 ? 2 : 1;  // heads: of bfloat16 a warp has two at a time
  const std::vector<int64_t> wrap{11, 3, 4}, with_sinks{2, 7, 0}, one{0};
  bool good = quantizes_keys<T>(one, 8, kFew, 1) && quantizes_keys<T>(wrap, 24, kMaxHeads, 12) &&
              quantizes_keys<T>({2, 0, 1}, 40, 3 * kFew, 3);
  good &= quantizes_values<T>(one, 8, 128, 1) && quantizes_values<T>(wrap, 24, 256, 12, 2 * 256) &&
          quantizes_values<T>({2, 0, 1}, 16, 128, 3, 8) && quantizes_values<T>({3, 1}, 200, 128, 5);
  good &= rotates<T, int8_t>(1, 1, 8, kFew, 1) && rotates<T, int8_t>(2, 3, 24, kMaxHeads, 5) &&
          rotates<T, int8_t>(3, 2, 8, 3 * kFew, 4);
  good &= rotates<T, T>(1, 1, 1, 1, 1) && rotates<T, T>(2, 3, 7, kMaxHeads, 5);
  good &= stores<T, int8_t>(one, 8, kFew, 1, 1) && stores<T, int8_t>(wrap, 24, kMaxHeads, 12, 3) &&
          stores<T, int8_t>(with_sinks, 16, 3 * kFew, 9, 3) && stores<T, int8_t>(wrap, 8, kFew, 12, 0) &&
          stores<T, int8_t>(with_sinks, 24, kFew, 9, 3, false);
  good &=
      stores<T, T>(one, 1, 1, 1, 1) && stores<T, T>(wrap, 7, kMaxHeads, 12, 3) && stores<T, T>(with_sinks, 5, 3, 9, 3);
  return good;
}

int main() {
  const bool good = all_of_rows<float>() & all_of_rows<bf16>() & all_of_keys<float>() & all_of_keys<bf16>();
  std::printf(good ? "keys and norms agree\n" : "keys or norms differ\n");
  return good ? 0 : 1;
}
