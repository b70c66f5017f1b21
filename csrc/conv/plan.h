#pragma once
// From a call to the kernel's parameters: which instantiation, how many work tiles. Host code.
#include "conv/causal_conv.cuh"

namespace longlive::conv {
enum class Op { kCausal, kPoint, kTime, kUp };  // as kernels/causal_conv.py numbers them

// Frames [count, channels / 8, H, W, 8]; `indices` lists those to read or write.
struct FrameList {
  bf16* data;
  int64_t count;
  int channels;
  const int* indices;
};

struct Call {
  Op op;
  int frames, height, width;  // of the input, apart from history
  int channels;               // of an output frame; kPixelChannels: a picture
  FrameList x, residual;      // no residual: no data
  const bf16* weight;
  const float *bias, *gain;
  FrameList raw, act;  // either may have no data
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
  const auto frames = [](const FrameList& t) { return Frames{t.data, t.indices}; };
  Params p{};
  p.inputs = call.x.indices, p.residuals = call.residual.indices;
  p.weight = call.weight, p.bias = call.bias, p.gain = call.gain;
  p.raw = frames(call.raw), p.act = frames(call.act);
  p.pixels = call.pixels, p.as_bytes = call.as_bytes;
  p.tiles = work_tiles_of<C>(call);
  p.height = call.height, p.width = call.width, p.channels = call.channels;
  p.slices = C::slices(call.op == Op::kCausal || call.op == Op::kTime ? 3 : 1);
  p.chunks = ceil_div(call.x.channels, kChunk);
  p.residual_chunks = call.residual.data ? ceil_div(call.residual.channels, kChunk) : 0;
  p.part_size = (int64_t(p.slices) * p.chunks * C::kTaps + p.residual_chunks) * kChunk * C::N;
  p.eps = call.eps;
  return p;
}

// Calls f with the configuration that serves the call soonest; false if none does.
template <class F>
bool choose(const Call& call, int processors, F f) {
  using Wide = Config<Kind::kCausal, 192, 2>;
  using Low = Config<Kind::kCausal, 192, 1>;
  const bool wide = call.channels % 192 == 0, narrow = call.channels == 96;
  switch (call.op) {
    case Op::kCausal: {
      if (call.channels == kPixelChannels) return f(Config<Kind::kCausal, kPixelChannels, 4>{}), true;
      if (narrow) return f(Config<Kind::kCausal, 96, 4>{}), true;
      if (!wide) return false;
      // Half as high a tile reads each weight twice as often: only where it leaves less of the last wave, or of tiles
      // that reach beyond the frame, without work.
      const int waves = ceil_div(work_tiles_of<Wide>(call).count(), processors);
      const int low_waves = ceil_div(work_tiles_of<Low>(call).count(), processors);
      if (low_waves < 2 * waves) {
        f(Low{});
      } else {
        f(Wide{});
      }
      return true;
    }
    case Op::kUp:
      if (narrow) return f(Config<Kind::kUp, 96, 4>{}), true;
      return call.channels == 192 && (f(Config<Kind::kUp, 192, 2>{}), true);
    default: return wide && (f(Config<Kind::kPoint, 192, 2>{}), true);
  }
}
}  // namespace longlive::conv
