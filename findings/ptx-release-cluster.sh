#!/usr/bin/env bash
# An arrival at an mbarrier with .release.cluster is compiled to a fence of the whole GPU.
#
# Versions: ptxas and cuobjdump of the wheel triton 3.7.1 (CUDA 12.8), target sm_90a. No GPU is needed.
# Who meets it: kernels whose CTAs form clusters and share tiles by multicast. A consumer that has read a stage arrives at the other
#   CTA's "empty" barrier. The scope looks like what is meant: "release, to the cluster".
# Guess: as cheap as the arrival at the CTA's own barrier, since both are one instruction to shared memory.
# Seen: .release.cluster puts MEMBAR.ALL.GPU, ERRBAR and CGAERRBAR before the arrival, in every iteration; .relaxed.cluster puts
#   nothing there, nor does the arrival without a scope. In a matrix product with a stage of 1024 cycles that fence made it 2200.
#   Who has only read needs no release: what orders a tensor core's reads is the wait for its products.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --no-deps "triton==3.7.1"
tools=$(dirname "$(find "$scratch/venv" -name ptxas -type f | head -1)")
cd "$scratch"

compile() { # SEMANTICS: the SASS of a kernel that arrives so
  cat > kernel.ptx <<PTX
.version 8.7
.target sm_90a
.address_size 64
.visible .entry kernel(.param .u32 barrier)
{
  .reg .b32 %r<2>;
  ld.param.u32 %r1, [barrier];
  mbarrier.arrive$1.shared::cluster.b64 _, [%r1];
  ret;
}
PTX
  "$tools/ptxas" -arch=sm_90a kernel.ptx -o kernel.cubin
  "$tools/cuobjdump" -sass kernel.cubin 2> /dev/null
}

"$tools/ptxas" --version | grep -o "release [0-9.]*"
status=0
for semantics in "" .relaxed.cluster .release.cluster; do
  fences=$(compile "$semantics" | grep -c "MEMBAR.ALL.GPU" || true)
  echo "mbarrier.arrive$semantics.shared::cluster: $fences fences of the whole GPU"
  [ "$fences" = "$([ "$semantics" = .release.cluster ] && echo 1 || echo 0)" ] || status=1
done
exit $status
