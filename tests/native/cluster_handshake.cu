// What compute-sanitizer's racecheck knows of clusters: two CTAs of one warp each exchange a value a lane, many times,
// by the exchange of csrc/conv (stores to the other CTA's shared memory, then an arrival at its barrier), or with the
// cluster's own barrier in the arrival's place.
//   nvcc -std=c++17 -arch=sm_90a -I csrc tests/native/cluster_handshake.cu -o handshake
//   compute-sanitizer --tool racecheck ./handshake [cluster]
#include <cstdio>
#include <cstring>

#include "common/sm90/cluster.cuh"

namespace sm90 = longlive::sm90;

__global__ void __cluster_dims__(2) exchange(int rounds, bool by_cluster, float* wrong) {
  __shared__ float values[2][32];
  __shared__ sm90::Barrier full[2];
  const int lane = threadIdx.x;
  const uint32_t other = sm90::cluster_rank() ^ 1;
  if (lane == 0)
    for (auto& barrier : full) barrier.init(1);
  sm90::fence_barrier_init();
  __syncwarp();
  sm90::cluster_sync();
  for (int i = 0; i < rounds; ++i) {
    sm90::remote_store(sm90::remote_address(&values[i & 1][lane], other), float(i * 64 + lane));
    __syncwarp();
    if (by_cluster) {
      sm90::cluster_sync();
    } else {
      if (lane == 0) sm90::remote_arrive(sm90::remote_address(&full[i & 1], other));
      sm90::wait_for_cluster(full[i & 1], i >> 1 & 1);
    }
    if (values[i & 1][lane] != float(i * 64 + lane)) atomicAdd(wrong, 1.0f);
  }
  sm90::cluster_sync();
}

int main(int count, char** arguments) {
  float* wrong;
  float found = 0;
  if (cudaMalloc(&wrong, sizeof found) != cudaSuccess || cudaMemset(wrong, 0, sizeof found) != cudaSuccess) return 2;
  exchange<<<2, 32>>>(1000, count > 1 && !std::strcmp(arguments[1], "cluster"), wrong);
  if (cudaMemcpy(&found, wrong, sizeof found, cudaMemcpyDeviceToHost) != cudaSuccess) return 3;
  std::printf("%g values were wrong\n", found);
  return found != 0;
}
