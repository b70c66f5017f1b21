// One call of the kernel on the emulator, by C's conventions; calls.py calls it.
#include "conv/plan.h"

using namespace longlive::conv;

template <class C>
void run(const Call& call, int processors) {
  emulator::require(launch<C>(maps_of<C>(call), params_of<C>(call), processors, nullptr) == cudaSuccess, "no launch");
}

template <int kElement>
void run_wide(const Call& call, int subtiles, int processors) {
  if (subtiles == 1) run<Config<Kind::kCausal, 192, 1, kElement>>(call, processors);
  if (subtiles == 2) run<Config<Kind::kCausal, 192, 2, kElement>>(call, processors);
}

// `subtiles`: of kCausal in 192 channels, 1 or 2; 0 as the library would choose.
extern "C" bool convolve_once(const Call* call, int subtiles, int processors, int seed) {
  emulator::random_source.seed(seed);
  if (subtiles == 0) return choose(*call, processors, [&]<class C>(C) { run<C>(*call, processors); });
  if (call->op != Op::kCausal || call->channels % 192 != 0 || subtiles > 2) return false;
  call->is_int8 ? run_wide<1>(*call, subtiles, processors) : run_wide<2>(*call, subtiles, processors);
  return true;
}

extern "C" int call_size() { return sizeof(Call); }
