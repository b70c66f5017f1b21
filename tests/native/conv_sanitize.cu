// csrc/conv/causal_conv.cuh without torch: every configuration that csrc/conv/plan.h chooses, on small pictures that no
// tile divides, with frames of zeros, residuals and all kinds of results. See sanitize.h.
//   nvcc -O2 -std=c++20 -gencode arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -lineinfo -Icsrc
//        tests/native/conv_sanitize.cu -o conv_sanitize && compute-sanitizer --tool memcheck ./conv_sanitize
//   compute-sanitizer --tool racecheck ./conv_sanitize apart
// `apart` leaves out the norm of 384 channels, whose exchange between CTAs racecheck cannot follow:
// cluster_handshake.cu.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "conv/plan.h"
#include "sanitize.h"

using namespace longlive::conv;
using longlive::bf16;
using longlive::ceil_div;

constexpr int kSpare = 2;  // frames that no list names
constexpr double kEps = 1e-24;
constexpr float kActScale = 1 / 64.f;

enum class Act { kNone, kBf16, kInt8, kCut };  // kCut: of int8, whose scale is so small that values are cut off

struct Case {
  const char* name;
  Op op = Op::kCausal;
  bool is_int8 = false;
  int height, width;
  int depth = 32, channels;   // of the input and of a result
  int frames = 1, zeros = 0;  // zeros: frames of history that are none
  int residual = 0;           // its channels
  bool raw = true, in_place = false;
  Act act = Act::kNone;
  int subtiles;  // of the configuration that is meant

  int slices() const { return op == Op::kCausal || op == Op::kTime ? 3 : 1; }
  int side() const { return op == Op::kCausal ? 3 : op == Op::kUp ? 2 : 1; }  // of the taps
  int results() const { return op == Op::kUp ? 4 : op == Op::kTime ? 2 : 1; }
  bool is_picture() const { return channels == kPixelChannels; }
  bool int8_act() const { return act == Act::kInt8 || act == Act::kCut; }
  bool exchanges() const { return channels == 384 && act != Act::kNone; }
  float act_scale() const { return act == Act::kCut ? 1 / 127.f : kActScale; }
};

// Frames [slots, channels / n, height, width, n], n elements in 16 bytes, and a list of some, in random order.
template <class T>
struct Pictures {
  static constexpr int kTogether = kGroupBytes / sizeof(T);
  const int slots, channels, height, width;
  Array<T> data;
  Array<int> indices;

  Pictures(int used, int channels, int height, int width, T value = {})
      : slots(used + kSpare),
        channels(channels),
        height(height),
        width(width),
        data(size_t(slots) * channels * height * width, value),
        indices(some_of(slots, used)) {}
  static std::vector<int> some_of(int slots, int used) {
    std::vector<int> all(slots);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), source);
    return {all.begin(), all.begin() + used};
  }
  FrameList list() const { return {data.device, slots, channels / kTogether, indices.device}; }
  size_t at(int slot, int channel, int y, int x) const {
    const size_t group = size_t(slot) * (channels / kTogether) + channel / kTogether;
    return ((group * height + y) * width + x) * kTogether + channel % kTogether;
  }
  // Of the i-th frame of the list; zero beyond the edges and for an index that is none.
  float get(int i, int channel, int y, int x) const {
    const int slot = indices.host[i];
    if (slot < 0 || y < 0 || x < 0 || y >= height || x >= width) return 0;
    return value(data.host[at(slot, channel, y, x)]);
  }
  static float value(int8_t x) { return x; }
  static float value(bf16 x) { return float(wide(x)); }
  // Whether frames that the list does not name are as they were.
  bool others_are(const T& before) const {
    for (int slot = 0; slot < slots; ++slot) {
      if (std::count(indices.host.begin(), indices.host.end(), slot)) continue;
      const size_t size = data.host.size() / slots;
      for (size_t i = slot * size; i < (slot + 1) * size; ++i)
        if (std::memcmp(&data.host[i], &before, sizeof(T))) return false;
    }
    return true;
  }
};

// [rows, slices, taps, depth]
struct Weight {
  const int slices, taps, depth;
  std::vector<float> value;

  Weight(int rows, int slices, int taps, int depth)
      : slices(slices), taps(taps), depth(depth), value(size_t(rows) * slices * taps * depth) {}
  size_t at(int row, int slice, int tap) const { return ((size_t(row) * slices + slice) * taps + tap) * depth; }

  // Rows [first, first + width) as the kernel reads them: chunks of 32 channels of the input, padded with zeros.
  template <class T>
  void pack(int first, int width, std::vector<T>& to) const {
    constexpr int kTogether = kGroupBytes / sizeof(T);
    for (int slice = 0; slice < slices; ++slice)
      for (int chunk = 0; chunk < depth; chunk += kChunk)
        for (int tap = 0; tap < taps; ++tap)
          for (int group = chunk; group < chunk + kChunk; group += kTogether)
            for (int n = 0; n < width; ++n)
              for (int channel = group; channel < group + kTogether; ++channel) {
                const bool none = channel >= depth;
                const float x = none ? 0 : value[at(first + row_of(n, width), slice, tap) + channel];
                if constexpr (sizeof(T) == 1) {
                  to.push_back(T(x));
                } else {
                  to.push_back(rounded<T>(x));
                }
              }
  }
  // Of a packed row, which of each 32 it is.
  static int row_of(int n, int width) { return width % 32 ? n : n / 32 * 32 + n % 8 / 2 * 8 + n % 32 / 8 * 2 + n % 2; }
};

double silu_of(double x) { return x / (1 + std::exp(-x)); }

// What a call reads, inputs and weights of T, and what it should give.
template <class T>
struct Inputs {
  const Case& c;
  const int rows = c.results() * c.channels, width = c.channels % 192 ? c.channels : 192;  // of weights, of a part
  Pictures<T> x;
  Pictures<bf16> residual;
  Weight weight, point;  // point: of the residual
  Array<T> packed;
  Array<float> scale, bias, gain;
  std::vector<float> seen, added;  // x, with a border of zeros, and the residual: channels innermost

  explicit Inputs(const Case& c)
      : c(c),
        x(c.frames + c.slices() - 1, c.depth, c.height, c.width),
        residual(c.frames, c.residual, c.height, c.width),
        weight(rows, c.slices(), c.side() * c.side(), c.depth),
        point(c.channels, 1, 1, c.residual),
        packed(size_t(rows) * (c.slices() * weight.taps * padded(c.depth) + (multiplies() ? padded(c.residual) : 0))),
        scale(c.channels),
        bias(c.op == Op::kTime ? rows : c.channels),
        gain(c.channels) {
    fill_pictures();
    fill_weights();
    scale.fill([&] { return float(draw(5, 15)) / 10 / (73 * 73 * std::sqrt(fan())); });
    bias.fill([] { return normal(); });
    gain.fill([] { return 1 + normal(0.2f); });
    if (c.is_picture()) drop_padding();
    pack();
    see();
  }

  // y [channels] of one pixel, before it is rounded.
  std::vector<double> result(int frame, int result, int y, int x_at) const {
    std::vector<double> out(c.channels);
    for (int channel = 0; channel < c.channels; ++channel) {
      const int row = result * c.channels + channel;
      out[channel] = sum_of(row, frame, result, y, x_at) * (c.is_int8 ? scale.host[channel] : 1);
      out[channel] += bias.host[c.op == Op::kTime ? row : channel];
      const float* in = &added[((size_t(frame) * c.height + y) * c.width + x_at) * c.residual];
      for (int k = 0; k < c.residual; ++k)
        out[channel] += double(point.value[size_t(channel) * c.residual + k]) * in[k];
    }
    return out;
  }

 private:
  static int padded(int channels) { return ceil_div(channels, kChunk) * kChunk; }
  bool multiplies() const { return c.residual && !c.is_int8; }  // the residual, by weights
  float fan() const { return float(c.slices() * c.side() * c.side() * c.depth); }

  void fill_pictures() {
    if constexpr (sizeof(T) == 1) {
      x.data.fill([] { return int8_t(draw(-127, 127)); });
    } else {
      x.data.fill([] { return rounded<bf16>(normal()); });
    }
    for (int i = 0; i < c.zeros; ++i) x.indices.host[i] = -1 - i;
    x.indices.copy_in();
    residual.data.fill([] { return rounded<bf16>(normal()); });
  }

  // A residual of as many channels as the result is added as it is.
  void fill_weights() {
    const auto random = [](float fan) { return float(wide(rounded<bf16>(normal(1 / std::sqrt(fan))))); };
    for (float& w : weight.value) w = c.is_int8 ? float(draw(-127, 127)) : random(fan());
    for (int i = 0; i < int(point.value.size()); ++i)
      point.value[i] = c.residual == c.channels ? float(i / c.residual == i % c.residual) : random(float(c.residual));
  }

  // Of a picture's channels three are used.
  void drop_padding() {
    std::fill(bias.host.begin() + 3, bias.host.end(), 0.f);
    bias.copy_in();
    std::fill(weight.value.begin() + weight.at(3, 0, 0), weight.value.end(), 0.f);
  }

  void pack() {
    std::vector<T> stream;
    for (int first = 0; first < rows; first += width) {
      weight.pack(first, width, stream);
      if (multiplies()) point.pack(first, width, stream);
    }
    packed.host = stream;
    packed.copy_in();
  }

  void see() {
    for (int frame = 0; frame < int(x.indices.host.size()); ++frame)
      for (int y = -1; y <= c.height; ++y)
        for (int x_at = -1; x_at <= c.width; ++x_at)
          for (int k = 0; k < c.depth; ++k) seen.push_back(x.get(frame, k, y, x_at));
    for (int frame = 0; frame < c.frames; ++frame)
      for (int y = 0; y < c.height; ++y)
        for (int x_at = 0; x_at < c.width; ++x_at)
          for (int k = 0; k < c.residual; ++k) added.push_back(residual.get(frame, k, y, x_at));
  }

  double sum_of(int row, int frame, int result, int y, int x_at) const {
    double sum = 0;
    for (int slice = 0; slice < c.slices(); ++slice)
      for (int tap = 0; tap < weight.taps; ++tap) {
        int to_y = y + tap / c.side(), to_x = x_at + tap % c.side();
        if (c.op == Op::kCausal) --to_y, --to_x;
        if (c.op == Op::kUp) to_y += result / 2 - 1, to_x += result % 2 - 1;
        const float* w = &weight.value[weight.at(row, slice, tap)];
        const float* in =
            &seen[((size_t(frame + slice) * (c.height + 2) + to_y + 1) * (c.width + 2) + to_x + 1) * c.depth];
        for (int k = 0; k < c.depth; ++k) sum += double(in[k]) * w[k];
      }
    return sum;
  }
};

// One call: of pictures two, whose pixels are bytes and bfloat16.
template <class T>
struct Test {
  const Case& c;
  Inputs<T> in{c};
  Pictures<bf16> raw = like<bf16>(rounded<bf16>(kNaN)), act = like<bf16>(rounded<bf16>(kNaN));
  Pictures<int8_t> act_int8 = like<int8_t>(kUnwritten);
  Array<int64_t> saturated{1, kCounted};
  Array<uint8_t> bytes{size_t(c.frames) * c.height * c.width * 3, 77};
  Array<bf16> pixels{bytes.host.size(), rounded<bf16>(kNaN)};
  int64_t cut = 0;  // values that int8 does not reach

  static constexpr int kCounted = 5;  // before

  bool run() {
    if (!launch_all()) return std::printf("%s: not the configuration that was meant\n", c.name), false;
    bool good =
        raw.others_are(rounded<bf16>(kNaN)) && act.others_are(rounded<bf16>(kNaN)) && act_int8.others_are(kUnwritten);
    for (int frame = 0; frame < c.frames; ++frame)
      for (int result = 0; result < c.results(); ++result)
        for (int y = 0; y < c.height; ++y)
          for (int x = 0; x < c.width; ++x) good &= agrees(frame, result, y, x);
    good &= std::abs(double(saturated.host[0] - kCounted - cut)) <= 2 + 0.05 * double(cut);
    if (!good) std::printf("%s differs\n", c.name);
    return good;
  }

 private:
  template <class Out>
  Pictures<Out> like(Out value) const {
    const int scale = c.op == Op::kUp ? 2 : 1;
    return {c.frames * (c.op == Op::kTime ? 2 : 1), c.channels, scale * c.height, scale * c.width, value};
  }

  Call call() {
    Call call{};
    call.op = c.op, call.frames = c.frames, call.height = c.height, call.width = c.width;
    call.channels = c.channels, call.is_int8 = c.is_int8;
    call.x = in.x.list(), call.weight = in.packed.device, call.bias = in.bias.device;
    if (c.is_int8) call.scale = in.scale.device;
    if (c.residual) call.residual = in.residual.list();
    if (c.raw && !c.is_picture()) call.raw = c.in_place ? in.residual.list() : raw.list();
    if (c.act != Act::kNone) call.gain = in.gain.device, call.eps = float(kEps / c.channels);
    if (c.act == Act::kBf16) call.act = act.list();
    if (c.int8_act())
      call.act = act_int8.list(), call.act_inverse = 1 / c.act_scale(), call.saturated = saturated.device;
    return call;
  }

  // False unless the configuration is the one that is meant.
  bool launch_once(const Call& call) {
    bool as_meant = false;
    const bool found = choose(call, 2, [&]<class C>(C) {
      as_meant = c.subtiles == C::kSubtiles;
      check(launch<C>(maps_of<C>(call), params_of<C>(call), 2, nullptr), "launch");
      check(cudaDeviceSynchronize(), "kernel");
    });
    return found && as_meant;
  }

  bool launch_all() {
    Call call = this->call();
    call.pixels = pixels.device;
    bool good = launch_once(call);
    if (c.is_picture()) call.pixels = bytes.device, call.as_bytes = true, good &= launch_once(call);
    raw.data.copy_out(), act.data.copy_out(), act_int8.data.copy_out(), in.residual.data.copy_out();
    saturated.copy_out(), bytes.copy_out(), pixels.copy_out();
    return good;
  }

  // Tolerances: one rounding of the result, and of y for the norm; where it is int8, SiLU(z) = z/2 (1 + tanh(z/2)) in
  // half precision, whose tanh is off by up to 2^-11: far below zero that is more than what is left.
  bool agrees(int frame, int result, int y, int x) {
    const std::vector<double> want = in.result(frame, result, y, x);
    if (c.is_picture()) return pixel_agrees((size_t(frame) * c.height + y) * c.width + x, want);
    if (c.op == Op::kTime) frame = 2 * frame + result;
    if (c.op == Op::kUp) y = 2 * y + result / 2, x = 2 * x + result % 2;
    const Pictures<bf16>& stored = c.in_place ? in.residual : raw;
    double square = 0;
    for (const double sum : want) square += sum * sum / c.channels;
    bool good = true;
    for (int channel = 0; channel < c.channels; ++channel) {
      const double sum = want[channel];
      const double z = sum / std::sqrt(square + kEps / c.channels) * in.gain.host[channel], silu = silu_of(z);
      if (c.raw) good &= std::abs(stored.get(frame, channel, y, x) - sum) <= std::abs(sum) / 256 + 1e-4;
      if (c.act == Act::kBf16) good &= std::abs(act.get(frame, channel, y, x) - silu) <= std::abs(silu) / 128 + 8e-3;
      if (c.int8_act()) good &= int8_agrees(act_int8.get(frame, channel, y, x), silu, z);
    }
    return good;
  }
  bool int8_agrees(double got, double silu, double z) {
    const double steps = silu / c.act_scale(), off = (std::abs(silu) / 128 + std::abs(z) / 2048) / c.act_scale();
    cut += steps >= 127.5;
    return std::abs(got - std::min(steps, 127.)) <= 0.53 + off;
  }

  bool pixel_agrees(size_t pixel, const std::vector<double>& want) const {
    bool good = true;
    for (int i = 0; i < 3; ++i) {
      const double byte = std::trunc(255 * std::clamp(want[i] / 2 + 0.5, 0., 1.));
      good &= std::abs(bytes.host[3 * pixel + i] - byte) <= 1.01;
      good &= std::abs(wide(pixels.host[3 * pixel + i]) - want[i]) <= std::abs(want[i]) / 256 + 1e-4;
    }
    return good;
  }
};

int main(int count, char**) {
  // clang-format off
  const Case cases[] = {
      {.name = "pixels", .height = 11, .width = 19, .channels = kPixelChannels, .zeros = 1, .subtiles = 4},
      {.name = "pixels of 96", .height = 33, .width = 17, .depth = 96, .channels = kPixelChannels, .frames = 2,
       .subtiles = 4},
      {.name = "96", .height = 20, .width = 27, .depth = 16, .channels = 96, .frames = 2, .zeros = 1, .subtiles = 4},
      {.name = "96, one pixel", .height = 1, .width = 1, .channels = 96, .zeros = 2, .act = Act::kBf16, .subtiles = 4},
      {.name = "96 in place", .height = 20, .width = 27, .channels = 96, .residual = 96, .in_place = true,
       .act = Act::kInt8, .subtiles = 4},
      {.name = "192", .height = 15, .width = 20, .channels = 192, .zeros = 1, .act = Act::kBf16, .subtiles = 2},
      {.name = "192, low, shortcut", .height = 8, .width = 20, .channels = 192, .residual = 40, .act = Act::kCut,
       .subtiles = 1},
      {.name = "384", .height = 13, .width = 18, .channels = 384, .frames = 2, .raw = false, .act = Act::kBf16,
       .subtiles = 2},
      {.name = "384, low", .height = 7, .width = 33, .depth = 16, .channels = 384, .zeros = 1, .residual = 384,
       .act = Act::kInt8, .subtiles = 1},
      {.name = "384 without norm", .height = 9, .width = 17, .channels = 384, .subtiles = 2},
      {.name = "up, 96", .op = Op::kUp, .height = 20, .width = 27, .channels = 96, .act = Act::kInt8, .subtiles = 4},
      {.name = "up, 192", .op = Op::kUp, .height = 9, .width = 17, .channels = 192, .frames = 2, .act = Act::kBf16,
       .subtiles = 2},
      {.name = "point", .op = Op::kPoint, .height = 20, .width = 27, .depth = 96, .channels = 192, .frames = 2,
       .subtiles = 2},
      {.name = "point and a residual", .op = Op::kPoint, .height = 9, .width = 24, .channels = 384, .residual = 192,
       .subtiles = 2},
      {.name = "time", .op = Op::kTime, .height = 9, .width = 17, .depth = 64, .channels = 384, .frames = 2,
       .zeros = 2, .subtiles = 2},
      {.name = "int8, 96", .is_int8 = true, .height = 20, .width = 27, .channels = 96, .frames = 2, .zeros = 1,
       .subtiles = 4},
      {.name = "int8, 96, one pixel", .is_int8 = true, .height = 1, .width = 1, .depth = 16, .channels = 96,
       .zeros = 2, .act = Act::kInt8, .subtiles = 4},
      {.name = "int8, 96 in place", .is_int8 = true, .height = 33, .width = 40, .channels = 96, .residual = 96,
       .in_place = true, .act = Act::kInt8, .subtiles = 4},
      {.name = "int8, 192", .is_int8 = true, .height = 15, .width = 20, .depth = 16, .channels = 192,
       .residual = 192, .act = Act::kBf16, .subtiles = 2},
      {.name = "int8, 192, low", .is_int8 = true, .height = 8, .width = 33, .depth = 64, .channels = 192, .zeros = 1,
       .raw = false, .act = Act::kCut, .subtiles = 1},
      {.name = "int8, 384", .is_int8 = true, .height = 13, .width = 18, .channels = 384, .frames = 2,
       .residual = 384, .act = Act::kInt8, .subtiles = 2},
      {.name = "int8, 384, low", .is_int8 = true, .height = 7, .width = 17, .channels = 384, .zeros = 1,
       .act = Act::kBf16, .subtiles = 1},
  };
  // clang-format on
  bool good = true;
  for (const Case& c : cases)
    if (count == 1 || !c.exchanges()) good &= c.is_int8 ? Test<int8_t>{c}.run() : Test<bf16>{c}.run();
  std::printf(good ? "causal_conv agrees\n" : "causal_conv differs\n");
  return good ? 0 : 1;
}
