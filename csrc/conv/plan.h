#pragma once
// From a call to the kernel's parameters: which instantiation, how many work tiles. Host code.
#include "conv/causal_conv.cuh"

namespace longlive::conv {
enum class Op { kCausal, kPoint, kTime, kUp };  // as kernels/causal_conv.py numbers them

// Frames [count, groups, H, W, 16 bytes]; `indices` lists those to read or write.
struct FrameList {
  void* data;
  int64_t count;
  int groups;
  const int* indices;
};

struct Call {
  Op op;
  int frames, height, width;  // of the input, apart from history
  int channels;               // of an output frame; kPixelChannels: a picture
  bool is_int8;               // x and weight
  FrameList x, residual;      // no residual: no data
  const void* weight;
  const float *scale, *bias, *gain;
  FrameList raw, act;  // either may have no data
  float act_inverse;   // 0: act is bfloat16
  void* saturated;     // int64
  void* pixels;
  bool as_bytes;
  float eps;
};

template <class C>
WorkTiles work_tiles_of(const Call& call) {
  const int channel_parts = call.channels / C::N;
  const int results = call.op == Op::kUp ? 4 : call.op == Op::kTime ? 2 : 1;
  return {channel_parts,
          channel_parts * results,
          call.frames,
          ceil_div(call.width, C::kColumns),
          ceil_div(call.height, C::kRows),
          C::kRows,
          C::kColumns};
}

template <class C>
Params params_of(const Call& call) {
  const auto frames = [](const FrameList& t) { return Frames{static_cast<uint8_t*>(t.data), t.indices}; };
  Params p{};
  p.inputs = call.x.indices, p.residuals = call.residual.indices;
  p.weight = static_cast<const uint8_t*>(call.weight);
  p.scale = call.scale, p.bias = call.bias, p.gain = call.gain;
  if (C::kInt8) p.residual = frames(call.residual);
  p.raw = frames(call.raw), p.act = frames(call.act);
  p.act_inverse = call.act_inverse, p.saturated = static_cast<unsigned long long*>(call.saturated);
  p.pixels = call.pixels, p.as_bytes = call.as_bytes;
  p.tiles = work_tiles_of<C>(call);
  p.height = call.height, p.width = call.width, p.channels = call.channels;
  const int scale = call.op == Op::kUp ? 2 : 1;  // of neighbours apart in the input, whose results are apart in y
  p.row = scale * scale * call.width * kGroupBytes, p.plane = p.row * call.height;
  p.slices = call.op == Op::kCausal || call.op == Op::kTime ? 3 : 1;
  p.chunks = ceil_div(call.x.groups, C::kGroups);
  p.residual_chunks = call.residual.data && !C::kInt8 ? ceil_div(call.residual.groups, C::kGroups) : 0;
  p.part_bytes = (int64_t(p.slices) * p.chunks * C::kTaps + p.residual_chunks) * kChunk * C::kElement * C::N;
  p.eps = call.eps;
  return p;
}

template <class C>
Maps maps_of(const Call& call) {
  const auto map = [&](const FrameList& t, int columns, int rows, int groups) {
    return box_map(t.data, t.count, t.groups, call.height, call.width, columns, rows, groups);
  };
  const auto patches = [&](const FrameList& t) { return map(t, C::kPatchColumns, C::kPatchRows, C::kGroups); };
  if (!call.residual.data) return {patches(call.x), patches(call.x)};  // a stand-in that is never read
  if (C::kInt8) return {patches(call.x), map(call.residual, C::kColumns, C::kRows, kResidualGroups)};
  return {patches(call.x), patches(call.residual)};
}

// kCausal in parts of 192 channels. Half as high a tile reads each weight twice as often: only where it leaves less of
// the last wave, or of tiles that reach beyond the frame, without work.
template <int kElement, class F>
void choose_height(const Call& call, int processors, F f) {
  using Wide = Config<Kind::kCausal, 192, 2, kElement>;
  using Low = Config<Kind::kCausal, 192, 1, kElement>;
  const int waves = ceil_div(work_tiles_of<Wide>(call).count(), processors);
  const int low_waves = ceil_div(work_tiles_of<Low>(call).count(), processors);
  if (low_waves < 2 * waves) {
    f(Low{});
  } else {
    f(Wide{});
  }
}

// Calls f with the configuration that serves the call soonest; false if none does.
template <class F>
bool choose(const Call& call, int processors, F f) {
  const bool wide = call.channels % 192 == 0, narrow = call.channels == 96;
  if (call.is_int8) {
    if (call.op != Op::kCausal) return false;
    if (narrow) return f(Config<Kind::kCausal, 96, 4, 1>{}), true;
    return wide && (choose_height<1>(call, processors, f), true);
  }
  switch (call.op) {
    case Op::kCausal:
      if (call.channels == kPixelChannels) return f(Config<Kind::kCausal, kPixelChannels, 4>{}), true;
      if (narrow) return f(Config<Kind::kCausal, 96, 4>{}), true;
      return wide && (choose_height<2>(call, processors, f), true);
    case Op::kUp:
      if (narrow) return f(Config<Kind::kUp, 96, 4>{}), true;
      return call.channels == 192 && (f(Config<Kind::kUp, 192, 2>{}), true);
    default: return wide && (f(Config<Kind::kPoint, 192, 2>{}), true);
  }
}
}  // namespace longlive::conv
