// One call of the kernel on the emulator, by C's conventions; calls.py calls it.
#include "conv/plan.h"

using namespace longlive::conv;

template <class C>
void run(const Call& call, int processors) {
  const auto map = [&](const FrameList& t) {
    return patch_map<C>(t.data, t.count, t.channels, call.height, call.width);
  };
  const auto input = map(call.x), residual = map(call.residual.data ? call.residual : call.x);
  emulator::require(launch<C>(input, residual, params_of<C>(call), processors, nullptr) == cudaSuccess, "no launch");
}

// `subtiles`: of kCausal in 192 channels, 1 or 2; 0 as the library would choose.
extern "C" bool convolve_once(const Call* call, int subtiles, int processors, int seed) {
  emulator::random_source.seed(seed);
  const auto with = [&]<class C>(C) { run<C>(*call, processors); };
  if (subtiles == 0) return choose(*call, processors, with);
  if (call->op != Op::kCausal || call->channels % 192 != 0 || subtiles > 2) return false;
  if (subtiles == 1) with(Config<Kind::kCausal, 192, 1>{});
  if (subtiles == 2) with(Config<Kind::kCausal, 192, 2>{});
  return true;
}

extern "C" int call_size() { return sizeof(Call); }
