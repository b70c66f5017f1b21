#!/usr/bin/env bash
# nvcc's short form -arch=sm_90a compiles for compute_90 too, so that no kernel with wgmma builds by it.
#
# Versions: the wheels nvidia-cuda-nvcc 13.0.88 and 13.5.37 with their nvvm, crt and runtime. No GPU is needed.
# Who meets it: everyone who compiles one file for one GPU by hand (a harness, a program for compute-sanitizer), since the short form
#   is what one types; build systems spell -gencode out.
# Guess: the chip that is named and its closest virtual architecture, as nvcc --help says: sm_90a and compute_90a.
# Seen: a third image, PTX for the plain compute_90, which ptxas checks as well. There wgmma does not exist: "Instruction
#   'wgmma.fence' not supported on .target 'sm_90'". So with sm_100a and compute_100, sm_120a and compute_120. A kernel without
#   such instructions builds, and its plain PTX is in the file. -gencode arch=compute_90a,code=sm_90a makes one image.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
echo '__global__ void kernel() { asm volatile("wgmma.fence.sync.aligned;"); }' > kernel.cu

status=0
for version in 13.0.88 13.5.37; do
  python3 -m venv "venv-$version"
  line="~=${version%.*}.0"
  "venv-$version/bin/pip" install --quiet --no-deps "nvidia-cuda-nvcc==$version" "nvidia-nvvm$line" "nvidia-cuda-crt$line" \
    "nvidia-cuda-runtime$line"
  nvcc=$(find "venv-$version" -name nvcc -type f | head -1)
  for short in sm_90a sm_100a sm_120a; do
    images=$("$nvcc" "-arch=$short" --dryrun -c kernel.cu -o kernel.o 2>&1 | grep -o "ptxas -arch=[a-z_0-9]*" | tr '\n' ' ')
    echo "$version -arch=$short: $images"
    plain=${short#sm_}
    [[ $images == *"compute_${plain%a} "* ]] || status=1
  done
  if "$nvcc" -arch=sm_90a -c kernel.cu -o kernel.o 2> errors; then status=1; fi
  grep -o "Instruction .* not supported on .target '[a-z_0-9]*'" errors || status=1
  "$nvcc" -gencode arch=compute_90a,code=sm_90a -c kernel.cu -o kernel.o && echo "$version -gencode: builds"
done
exit $status
