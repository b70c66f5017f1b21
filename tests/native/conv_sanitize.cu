// csrc/conv/causal_conv.cuh without torch: every configuration that csrc/conv/plan.h chooses, on small pictures that no
// tile divides, with frames of zeros, residuals and all kinds of results. See sanitize.h.
//   nvcc -O2 -std=c++20 -gencode arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -lineinfo -Icsrc
//        tests/native/conv_sanitize.cu -o conv_sanitize && compute-sanitizer --tool memcheck ./conv_sanitize
//   compute-sanitizer --tool racecheck ./conv_sanitize apart
// `apart` leaves out the norm of 384 channels, whose exchange between CTAs racecheck cannot follow:
// cluster_handshake.cu.
#include <algorithm>
#include <cstring>

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
  Op op;
  bool is_int8;
  int height, width, depth, channels, frames;  // depth: channels of the input
  int residual;                                // its channels
  bool raw;
  Act act;
  int zeros, subtiles;  // frames of history that are none; of the configuration, 0: any
  bool in_place = false;

  int slices() const { return op == Op::kCausal || op == Op::kTime ? 3 : 1; }
  int side() const { return op == Op::kCausal ? 3 : op == Op::kUp ? 2 : 1; }  // of the taps
  int results() const { return op == Op::kUp ? 4 : op == Op::kTime ? 2 : 1; }
  int scale() const { return op == Op::kUp ? 2 : 1; }
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
        indices(slots) {
    for (int i = 0; i < slots; ++i) indices.host[i] = i;
    std::shuffle(indices.host.begin(), indices.host.end(), source);
    indices.host.resize(used);
    indices.copy_in();
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

// One call, with inputs and weights of T.
template <class T>
struct Test {
  const Case& c;
  const bool is_picture = c.channels == kPixelChannels;
  const int rows = c.results() * c.channels, width = c.channels % 192 ? c.channels : 192;
  Pictures<T> x;
  Pictures<bf16> residual, raw, act;
  Pictures<int8_t> act_int8;
  Weight weight, point;
  Array<float> scale, bias, gain;
  Array<int64_t> saturated{1, 5};  // one, which counts on from 5
  Array<uint8_t> bytes;
  Array<bf16> pixels;
  Array<T> packed;

  explicit Test(const Case& c)
      : c(c),
        x(c.frames + c.slices() - 1, c.depth, c.height, c.width),
        residual(c.frames, c.residual, c.height, c.width),
        raw(out_frames(), c.channels, c.scale() * c.height, c.scale() * c.width, rounded<bf16>(kNaN)),
        act(out_frames(), c.channels, c.scale() * c.height, c.scale() * c.width, rounded<bf16>(kNaN)),
        act_int8(out_frames(), c.channels, c.scale() * c.height, c.scale() * c.width, kUnwritten),
        weight(rows, c.slices(), c.side() * c.side(), c.depth),
        point(c.channels, 1, 1, c.residual),
        scale(c.channels),
        bias(c.op == Op::kTime ? rows : c.channels),
        gain(c.channels),
        bytes(size_t(c.frames) * c.height * c.width * 3, 77),
        pixels(bytes.host.size(), rounded<bf16>(kNaN)),
        packed(size_t(rows) * (c.slices() * weight.taps * padded(c.depth) + (adds_point() ? padded(c.residual) : 0))) {}

  static int padded(int channels) { return ceil_div(channels, kChunk) * kChunk; }
  bool adds_point() const { return c.residual && !c.is_int8; }  // by products

  int out_frames() const { return c.frames * (c.op == Op::kTime ? 2 : 1); }
  bool adds_itself() const { return c.residual == c.channels; }  // the residual, as it is

  void fill() {
    const float fan = float(c.slices() * c.side() * c.side() * c.depth);
    const auto noise = [] { return rounded<bf16>(normal()); };
    if constexpr (sizeof(T) == 1) {
      x.data.fill([] { return int8_t(draw(-127, 127)); });
      for (float& w : weight.value) w = float(draw(-127, 127));
    } else {
      x.data.fill(noise);
      for (float& w : weight.value) w = float(wide(rounded<bf16>(normal(1 / std::sqrt(fan)))));
    }
    for (int i = 0; i < c.zeros; ++i) x.indices.host[i] = -1 - i;
    x.indices.copy_in();
    residual.data.fill(noise);
    for (int i = 0; i < int(point.value.size()); ++i)
      point.value[i] = adds_itself() ? float(i / c.residual == i % c.residual)
                                     : float(wide(rounded<bf16>(normal(1 / std::sqrt(float(c.residual))))));
    scale.fill([&] { return float(draw(5, 15)) / 10 / (73 * 73 * std::sqrt(fan)); });
    bias.fill([] { return normal(); }), gain.fill([] { return 1 + normal(0.2f); });
    if (is_picture)  // of its channels three are used
      for (int row = 3; row < rows; ++row) {
        bias.host[row] = 0, bias.copy_in();
        std::fill(weight.value.begin() + weight.at(row, 0, 0), weight.value.begin() + weight.at(row + 1, 0, 0), 0.f);
      }
    std::vector<T> stream;
    for (int first = 0; first < rows; first += width) {
      weight.pack(first, width, stream);
      if (adds_point()) point.pack(first, width, stream);
    }
    packed.host = stream;
    packed.copy_in();
  }

  Call call() {
    Call call{};
    call.op = c.op, call.frames = c.frames, call.height = c.height, call.width = c.width;
    call.channels = c.channels, call.is_int8 = c.is_int8;
    call.x = x.list(), call.weight = packed.device, call.bias = bias.device;
    if (c.is_int8) call.scale = scale.device;
    if (c.residual) call.residual = residual.list();
    if (c.raw) call.raw = c.in_place ? residual.list() : raw.list();
    if (c.act != Act::kNone) call.gain = gain.device, call.eps = float(kEps / c.channels);
    if (c.act == Act::kBf16) call.act = act.list();
    if (c.act == Act::kInt8 || c.act == Act::kCut)
      call.act = act_int8.list(), call.act_inverse = 1 / c.act_scale(), call.saturated = saturated.device;
    return call;
  }

  // y [channels] of one pixel, before it is rounded.
  std::vector<double> truth(int frame, int result, int y, int x_at) const {
    std::vector<double> out(c.channels);
    for (int channel = 0; channel < c.channels; ++channel) {
      const int row = result * c.channels + channel;
      double sum = 0;
      for (int slice = 0; slice < c.slices(); ++slice)
        for (int tap = 0; tap < c.side() * c.side(); ++tap) {
          int dy = tap / c.side(), dx = tap % c.side();
          if (c.op == Op::kCausal) --dy, --dx;
          if (c.op == Op::kUp) dy += result / 2 - 1, dx += result % 2 - 1;
          const float* w = &weight.value[weight.at(row, slice, tap)];
          const float* in = &seen[seen_at(frame + slice, y + dy, x_at + dx)];
          for (int k = 0; k < c.depth; ++k) sum += double(in[k]) * w[k];
        }
      if (c.is_int8) sum *= scale.host[channel];
      sum += bias.host[c.op == Op::kTime ? row : channel];
      for (int k = 0; k < c.residual; ++k) {
        const float w = point.value[size_t(channel) * c.residual + k];
        if (w != 0) sum += double(w) * before[before_at(frame, k, y, x_at)];
      }
      out[channel] = sum;
    }
    return out;
  }

  // The input and the residual, channels innermost; of the input with a border of zeros.
  std::vector<float> seen, before;
  size_t seen_at(int frame, int y, int x_at) const {
    return ((size_t(frame) * (c.height + 2) + y + 1) * (c.width + 2) + x_at + 1) * c.depth;
  }
  size_t before_at(int frame, int channel, int y, int x_at) const {
    return ((size_t(frame) * c.height + y) * c.width + x_at) * c.residual + channel;
  }
  void look() {
    for (int frame = 0; frame < int(x.indices.host.size()); ++frame)
      for (int y = -1; y <= c.height; ++y)
        for (int x_at = -1; x_at <= c.width; ++x_at)
          for (int k = 0; k < c.depth; ++k) seen.push_back(x.get(frame, k, y, x_at));
    for (int frame = 0; frame < c.frames; ++frame)
      for (int y = 0; y < c.height; ++y)
        for (int x_at = 0; x_at < c.width; ++x_at)
          for (int k = 0; k < c.residual; ++k) before.push_back(residual.get(frame, k, y, x_at));
  }

  int64_t cut = 0;  // values that int8 does not reach

  bool agrees(int frame, int result, int y, int x_at) {
    const std::vector<double> want = truth(frame, result, y, x_at);
    if (is_picture) return pixel_agrees((size_t(frame) * c.height + y) * c.width + x_at, want);
    const int to = c.op == Op::kTime ? 2 * frame + result : frame;
    const int to_y = c.scale() * y + (c.op == Op::kUp ? result / 2 : 0);
    const int to_x = c.scale() * x_at + (c.op == Op::kUp ? result % 2 : 0);
    const Pictures<bf16>& stored = c.in_place ? residual : raw;
    bool good = true;
    double square = 0;
    for (const double sum : want) square += sum * sum / c.channels;
    for (int channel = 0; channel < c.channels; ++channel) {
      const double sum = want[channel];
      if (c.raw) good &= std::abs(stored.get(to, channel, to_y, to_x) - sum) <= std::abs(sum) / 256 + 1e-4;
      // The norm reads what was rounded.
      const double result_of = silu_of(sum / std::sqrt(square + kEps / c.channels) * gain.host[channel]);
      if (c.act == Act::kBf16)
        good &= std::abs(act.get(to, channel, to_y, to_x) - result_of) <= std::abs(result_of) / 128 + 8e-3;
      if (c.act == Act::kInt8 || c.act == Act::kCut) {
        const double steps = result_of / c.act_scale(), most = std::min(steps, 127.);
        good &= std::abs(act_int8.get(to, channel, to_y, to_x) - most) <= 0.53 + std::abs(steps) / 128;
        cut += steps >= 127.5;
      }
    }
    return good;
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

  bool launch_all() {
    Call call = this->call();
    bool as_wanted = true;
    const auto launch_once = [&] {
      return choose(call, 2, [&]<class C>(C) {
        as_wanted &= c.subtiles == 0 || c.subtiles == C::kSubtiles;
        check(launch<C>(maps_of<C>(call), params_of<C>(call), 2, nullptr), "launch");
        check(cudaDeviceSynchronize(), "kernel");
      });
    };
    bool found = true;
    if (is_picture) {
      call.pixels = bytes.device, call.as_bytes = true, found &= launch_once();
      call.pixels = pixels.device, call.as_bytes = false;
    }
    found &= launch_once();
    raw.data.copy_out(), act.data.copy_out(), act_int8.data.copy_out(), residual.data.copy_out();
    saturated.copy_out(), bytes.copy_out(), pixels.copy_out();
    return found && as_wanted;
  }

  bool run() {
    fill();
    look();
    if (!launch_all()) return std::printf("%s: not the configuration that was meant\n", c.name), false;
    bool good =
        raw.others_are(rounded<bf16>(kNaN)) && act.others_are(rounded<bf16>(kNaN)) && act_int8.others_are(kUnwritten);
    for (int frame = 0; frame < c.frames; ++frame)
      for (int result = 0; result < c.results(); ++result)
        for (int y = 0; y < c.height; ++y)
          for (int x_at = 0; x_at < c.width; ++x_at) good &= agrees(frame, result, y, x_at);
    const double counted = double(saturated.host[0] - 5 - cut);
    good &= std::abs(counted) <= 1 + 0.02 * double(cut);
    if (!good) std::printf("%s differs\n", c.name);
    return good;
  }
};

int main(int count, char**) {
  const Case cases[] = {
      {"pixels", Op::kCausal, false, 11, 19, 32, kPixelChannels, 1, 0, false, Act::kNone, 1, 4},
      {"pixels of 96", Op::kCausal, false, 33, 17, 96, kPixelChannels, 2, 0, false, Act::kNone, 0, 4},
      {"96", Op::kCausal, false, 20, 27, 16, 96, 2, 0, true, Act::kNone, 1, 4},
      {"96, one pixel", Op::kCausal, false, 1, 1, 32, 96, 1, 0, true, Act::kBf16, 2, 4},
      {"96 in place", Op::kCausal, false, 20, 27, 32, 96, 1, 96, true, Act::kInt8, 0, 4, true},
      {"192", Op::kCausal, false, 15, 20, 32, 192, 1, 0, true, Act::kBf16, 1, 2},
      {"192, low, shortcut", Op::kCausal, false, 8, 20, 32, 192, 1, 40, true, Act::kCut, 0, 1},
      {"384", Op::kCausal, false, 13, 18, 32, 384, 2, 0, false, Act::kBf16, 0, 2},
      {"384, low", Op::kCausal, false, 7, 33, 16, 384, 1, 384, true, Act::kInt8, 1, 1},
      {"384 without norm", Op::kCausal, false, 9, 17, 32, 384, 1, 0, true, Act::kNone, 0, 2},
      {"up, 96", Op::kUp, false, 20, 27, 32, 96, 1, 0, true, Act::kInt8, 0, 4},
      {"up, 192", Op::kUp, false, 9, 17, 32, 192, 2, 0, true, Act::kBf16, 0, 2},
      {"point", Op::kPoint, false, 20, 27, 96, 192, 2, 0, true, Act::kNone, 0, 2},
      {"point and a residual", Op::kPoint, false, 9, 24, 32, 384, 1, 192, true, Act::kNone, 0, 2},
      {"time", Op::kTime, false, 9, 17, 64, 384, 2, 0, true, Act::kNone, 2, 2},
      {"int8, 96", Op::kCausal, true, 20, 27, 32, 96, 2, 0, true, Act::kNone, 1, 4},
      {"int8, 96, one pixel", Op::kCausal, true, 1, 1, 16, 96, 1, 0, true, Act::kInt8, 2, 4},
      {"int8, 96 in place", Op::kCausal, true, 33, 40, 32, 96, 1, 96, true, Act::kInt8, 0, 4, true},
      {"int8, 192", Op::kCausal, true, 15, 20, 16, 192, 1, 192, true, Act::kBf16, 0, 2},
      {"int8, 192, low", Op::kCausal, true, 8, 33, 64, 192, 1, 0, false, Act::kCut, 1, 1},
      {"int8, 384", Op::kCausal, true, 13, 18, 32, 384, 2, 384, true, Act::kInt8, 0, 2},
      {"int8, 384, low", Op::kCausal, true, 7, 17, 32, 384, 1, 0, true, Act::kBf16, 1, 1},
  };
  bool good = true;
  for (const Case& c : cases)
    if (count == 1 || !c.exchanges()) good &= c.is_int8 ? Test<int8_t>(c).run() : Test<bf16>(c).run();
  std::printf(good ? "causal_conv agrees\n" : "causal_conv differs\n");
  return good ? 0 : 1;
}
