// One call of the kernel on the emulated multiprocessors, by C's conventions; calls.py calls it.
#include "conv/plan.h"

using namespace longlive::conv;

template <class C>
void run(const Call& call, int processors, int lateness, int seed) {
  const Params p = params_of<C>(call);
  const auto map = [&](const Tensor4& t) {
    return patch_map<C>(t.data, t.count, t.channels, call.height, call.width);
  };
  const auto input = map(call.x), residual = map(call.residual.data ? call.residual : call.x);
  const int cluster = cluster_size(p), grid = std::min(p.items.count(), processors / cluster * cluster);
  for (int block = 0; block < grid; block += cluster)
    emulated::launch(cluster, block, grid, sizeof(Shared<C>), lateness, seed + block,
                     [&] { convolve<C>(input, residual, p, *reinterpret_cast<Shared<C>*>(emulated::cta().memory)); });
}

// `tiles`: of kCausal in 192 channels, 1 or 2; 0 as the library would choose.
extern "C" bool convolve_once(const Call* call, int tiles, int processors, int lateness, int seed) {
  const auto with = [&]<class C>(C) { run<C>(*call, processors, lateness, seed); };
  if (tiles == 0) return choose(*call, processors, with);
  if (call->op != Op::kCausal || call->channels % 192 != 0 || tiles > 2) return false;
  if (tiles == 1) with(Config<Kind::kCausal, 192, 1>{});
  if (tiles == 2) with(Config<Kind::kCausal, 192, 2>{});
  return true;
}

extern "C" int call_size() { return sizeof(Call); }
