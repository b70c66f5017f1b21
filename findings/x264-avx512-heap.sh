#!/usr/bin/env bash
# x264 on a CPU with AVX-512 makes other bytes of the same pictures from call to call: what lies in fresh memory decides.
#
# Versions: av 16.1.0, 17.1.0 and 18.1.0 from PyPI with their own libx264 (AVX-512, Linux, glibc); numpy 2.3.5.
# Who meets it: whoever compares encoded files of two runs, caches them by their checksum, or tests that a video is reproducible.
# Guess: the same pictures, settings and library, with one thread, make the same file: x264 promises that unless asked otherwise.
# Seen: at 192x128, preset medium, crf 18, one thread, files differ with what glibc fills fresh memory with (MALLOC_PERTURB_), and
#   decoded pictures with them. They do not without macroblock tree, without B-frames, without AVX-512 (asm up to
#   AVX2), or with cpu-independent=1.
# On a CPU without AVX-512 there is nothing to see, and the script says so. Exits non-zero if the behaviour changes.
set -euo pipefail
if ! grep -qw avx512bw /proc/cpuinfo; then
  echo "this CPU has no AVX-512: nothing to see"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
cat > encode.py <<'PYTHON'
import hashlib
import io
import sys

import av
import numpy as np

generator = np.random.default_rng(0)
pictures = generator.integers(0, 255, (24, 8, 12, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
options = {"preset": "medium", "crf": "18", "threads": "1"}
if sys.argv[1:]:
    options["x264-params"] = sys.argv[1]
file = io.BytesIO()
with av.open(file, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=16, options=options)
    stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
    for picture in pictures:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode())
file.seek(0)
shown = hashlib.sha256(b"".join(f.to_ndarray().tobytes() for f in av.open(file).decode(video=0)))
print(hashlib.sha256(file.getvalue()).hexdigest()[:8], shown.hexdigest()[:8])
PYTHON
for version in 16.1.0 17.1.0 18.1.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet --only-binary :all: "av==$version" numpy==2.3.5
  for params in "" no-mbtree=1 bframes=0 asm=MMX2,SSE2Fast,SSSE3,SSE4.2,AVX,FMA3,BMI2,AVX2 cpu-independent=1; do
    files=$(for byte in 1 170 255; do MALLOC_PERTURB_=$byte "venv-$version/bin/python" encode.py $params; done | sort -u)
    count=$(wc -l <<< "$files")
    echo "av $version, ${params:-as it is}: $count different of 3"
    [ "$count" = "$([ -z "$params" ] && echo 3 || echo 1)" ]
  done
  MALLOC_PERTURB_=1 "venv-$version/bin/python" encode.py
  MALLOC_PERTURB_=170 "venv-$version/bin/python" encode.py
done
