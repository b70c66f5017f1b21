"""Every command and claim of README.md and docs/, run once: ``python tests/docs/run_commands.py``

In a temporary clone of this checkout with few environment variables: ``./setup_env.sh demo`` makes the environment in
which all else runs, as a newcomer's (some minutes; ``--environment DIR`` takes one that is there). RUN says how each
command of the documents is run here and what it must print; claims that are no commands are in
``tests/support/documents``; NOT_RUN names all that is left, and why. What none of the three knows is a failure. The
table at the end says what ran, passed, failed and was not run; the status is 1 where anything failed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import textwrap
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.documents import api, house, install, model, readme, scope, served  # noqa: F401  (they register their claims)
from support.documents.account import DOCUMENTS, Account, NotRun, account, documents
from support.documents.claims import CLAIMS, Claim
from support.documents.markdown import Unit
from support.documents.names import unknown
from support.documents.place import Place


@dataclass(frozen=True)
class Run:
    """How a command of the documents is run here.

    command: what is typed instead, where names stand for something ($MODEL is a folder of small random weights) or a
    size for hours; None is the command itself. prints: patterns that stdout and stderr must have. writes: files that
    must be there then. where: ``work`` is an empty folder, ``checkout`` the clone. partly: what of it is not tried.
    """

    command: str | None = None
    prints: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    where: str = "work"
    partly: str = ""


def smaller(command: str, *prints: str, **how: Any) -> Run:
    """A command at sizes for a CPU."""
    return Run(command, prints, **how, partly="at smaller sizes and counts than said, for a CPU")


def selects(command: str) -> Run:
    """A command that runs tests on a GPU: are there any?"""
    how = f"{command} --collect-only"
    return Run(
        how, (r"[1-9]\d* tests collected|[1-9]\d*/\d+ tests",), where="checkout", partly="selects tests for a GPU"
    )


SMALL = "--model $MODEL --height 64 --width 96"
TABLE = (r"block_ms",)
PASSED = (r"\d+ passed",)

RUN: dict[str, Run] = {
    # README.md
    "./setup_env.sh demo": Run(
        prints=(
            r"== \.venv takes \d",
            r"128/128 frames",
            r"wrote out/demo\.mp4: \d+ kB, 8 s of 576x384, made after",
            r"wrote out/demo\.json",
            r"score: 16 of 16 attributes",
        ),
        writes=("out/demo.mp4", "out/demo.json", ".venv/bin/longlive-optimized", ".venv/bin/pytest"),
        where="checkout",
    ),
    ". .venv/bin/activate": Run(
        '. "$ENVIRONMENT/bin/activate" && type -P longlive-optimized python && python -c "import longlive_optimized"',
        (r"/bin/longlive-optimized\n.*/bin/python",),
    ),
    "longlive-optimized doctor": Run(prints=(r"longlive-optimized +│ \d", r"rms_norm +│ \w+ +│ ")),
    "python: from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig": Run(
        prints=(r"\Atorch\.Size\(\[9, 64, 96, 3\]\)\n(torch\.Size\(\[12, 64, 96, 3\]\)\n){7}\Z",)
    ),
    "python: from longlive_optimized.demo.scope_integration import (": Run(prints=(r"\A\Z",)),
    "longlive-optimized download": Run(
        "python $CHECKOUT/tests/support/hub.py longlive-optimized download",
        (r"daydreamlive/LongLive-1\.3B: models/longlive_base\.pt +4\.48 MB", r"ready to use as --model"),
        partly="from a small hub on this machine",
    ),
    "longlive-optimized serve --model daydreamlive/LongLive-1.3B": Run(
        "python $CHECKOUT/tests/support/hub.py timeout --preserve-status -s INT 30 longlive-optimized serve "
        "--model daydreamlive/LongLive-1.3B --height 64 --width 96 --port 0",
        (r"longlive_base\.pt", r"ready after \d"),
        partly="from a small hub on this machine",
    ),
    "longlive-optimized download [DIR]": Run(
        "python $CHECKOUT/tests/support/hub.py longlive-optimized download models --vace --text bf16 --vae tae --yes",
        (r"taew2_1\.pth", r"models_t5_umt5-xxl-enc-bf16\.pth", r"VACE_module", r"ready to use as --model"),
        partly="from a small hub on this machine",
    ),
    "longlive-optimized download DIR": Run(
        "python $CHECKOUT/tests/support/hub.py longlive-optimized download models && longlive-optimized doctor models",
        (r"models is complete and its parts fit together",),
        partly="from a small hub on this machine",
    ),
    'longlive-optimized generate --model DIR --prompt "a red fox in the snow" --switch 0:04:"the fox leaps" '
    "--seconds 8 --out fox.mp4": Run(
        f'longlive-optimized generate {SMALL} --prompt "a red fox in the snow" --switch 0:04:"the fox leaps" '
        "--seconds 8 --out fox.mp4",
        (r"wrote fox\.mp4: .*, 8 s of 96x64", r"prompt switch"),
        ("fox.mp4",),
    ),
    'longlive-optimized generate --model DIR --prompt "a fox" --control depth.mp4 --reference fox.png '
    "--out fox.mp4": Run(
        "longlive-optimized generate --prompt 'a fox' --seconds 1 --out depth.mp4 && "
        "longlive-optimized make-checkpoint steered --control && "
        "python -c \"import av; next(av.open('depth.mp4').decode(video=0)).save('fox.png')\" && "
        'longlive-optimized generate --model steered --height 64 --width 96 --prompt "a fox" --control depth.mp4 '
        "--reference fox.png --out fox.mp4 --force && longlive-optimized generate --prompt fox --video depth.mp4 "
        "--out in.mp4",
        (r"wrote fox\.mp4: .*, 1 s of 96x64", r"wrote in\.mp4: .*, 1 s of 96x64"),
        ("fox.mp4", "in.mp4"),
    ),
    **dict.fromkeys(
        [
            f"longlive-optimized generate --story {story}"
            for story in ("story.json --out fox.mp4", "FILE --out FILE.mp4")
        ],
        Run(
            'echo \'{"version": 1, "seconds": 2, "prompts": [{"seconds": 0, "prompt": "a red circle"}, '
            '{"seconds": 0.5, "prompt": "a white cross"}]}\' > told.json && '
            "longlive-optimized generate --story told.json --out told.mp4 --force",
            (r"wrote told\.mp4: .*, 2 s of 96x64",),
            ("told.mp4",),
        ),
    ),
    "python: import longlive_optimized": Run(prints=(r"\A\Z",), writes=("circle.mp4",)),
    "longlive-optimized presets": Run(prints=(r"balanced +closest to the model", r"steps 1000,250; window 9; int8")),
    "longlive-optimized make-checkpoint DIR --config 1.3b --text tiny": Run(
        "longlive-optimized make-checkpoint full --config 1.3b --text tiny && longlive-optimized doctor full; "
        "rm -r full",
        (r"wrote full: \d", r"full is complete and its parts fit together"),
    ),
    "longlive-optimized doctor DIR --verify": Run(
        "longlive-optimized doctor $MODEL --verify", (r"is complete and its parts fit together",)
    ),
    "longlive-optimized bench kernels": Run(prints=(r"ring_attention", r"rms_norm", r"causal_conv")),
    "longlive-optimized bench block --model DIR": smaller(f"longlive-optimized bench block {SMALL} --blocks 2", *TABLE),
    "longlive-optimized bench vae --model DIR": smaller(f"longlive-optimized bench vae {SMALL} --blocks 2", r"decode"),
    "longlive-optimized bench switch --model DIR": smaller(
        f"longlive-optimized bench switch {SMALL} --switches 2", r"first_pixel_ms"
    ),
    "longlive-optimized bench quality --model DIR": smaller(
        f"longlive-optimized bench quality {SMALL} --seeds 1", r"over_baseline|ours"
    ),
    "longlive-optimized bench quality --model tiny": smaller(
        "longlive-optimized bench quality --model tiny --seeds 1 --prompts 1 --seconds 2", r"scores"
    ),
    # docs/CONTRIBUTING.md
    "pytest -q -m gpu": selects("pytest -q -m gpu"),
    "python tests/measure/random_calls.py --count 10000": smaller(
        "python tests/measure/random_calls.py --count 20", r"quantize, \w+: 20 calls", where="checkout"
    ),
    "pytest -q -m gpu tests/build/test_sanitizers.py": selects("pytest -q -m gpu tests/build/test_sanitizers.py"),
    "./setup_env.sh": Run(prints=(r"== ready: .*/bin/longlive-optimized --help",), where="checkout"),
    "./setup_env.sh lint": Run(
        "LONGLIVE_CUDA=OFF ./setup_env.sh lint",  # no compiler for minutes
        (r"ruff check\.+Passed", r"ruff format\.+Passed", r"clang-format\.+Passed", r"types\.+Passed"),
        where="checkout",
    ),
    "LONGLIVE_CUDA=OFF pip install --no-build-isolation -e .": Run(where="checkout"),
    "pytest -q tests/kernels/test_rms_norm.py": Run(prints=PASSED, where="checkout"),
    "pytest -q tests/engine -k switch": Run(prints=PASSED, where="checkout"),
    "python tests/measure/report.py": Run(
        "python tests/measure/report.py && git diff --stat docs/performance.md", (r"\A\Z",), where="checkout"
    ),
    # docs/install.md
    "LONGLIVE_CUDA=OFF pip install .": Run(
        "LONGLIVE_CUDA=OFF pip wheel --no-deps --wheel-dir wheel . && ls wheel",
        (r"-py3-none-any\.whl",),
        where="checkout",
    ),
    "python tests/build/wheels.py wheels": Run(
        "python tests/build/wheels.py wheels pure try",
        (r"-py3-none-any\.whl: .* MB, built in", r"installed in \d+ s, used in \d+ s"),
        where="checkout",
        partly="the wheel that is compiled takes minutes",
    ),
    "python tests/measure/requirements.py": Run(
        "python tests/measure/requirements.py && git diff --stat README.md", (r"\A\Z",), where="checkout"
    ),
    # docs/api.md, docs/architecture.md
    "longlive-optimized doctor DIR": Run(
        "longlive-optimized doctor $MODEL", (r"is complete and its parts fit together",)
    ),
    "doctor --speed": Run("longlive-optimized doctor --speed", (r"nothing to estimate on a CPU|balanced: about \d+",)),
    "doctor DIR --verify": Run("longlive-optimized doctor $MODEL --verify", (r"no checksum",)),
    "longlive-optimized serve": Run(
        "timeout --preserve-status -s INT 20 longlive-optimized serve --port 0",
        (r"open http://127\.0\.0\.1:\d+/  \(Ctrl-C ends\)", r"ready after \d"),
    ),
    "longlive-optimized serve --osc 9000": Run(
        "timeout --preserve-status -s INT 20 longlive-optimized serve --port 0 --osc 0",
        (r"OSC by UDP port \d+", r"ready after \d"),
    ),
    "longlive-optimized serve --lora FILE[:SCALE]": Run(
        "PYTHONPATH=$CHECKOUT/tests python -c 'from pathlib import Path; import support.loras as loras; "
        'loras.for_the_built_in_model(Path("ink.pt"))\' && '
        "timeout --preserve-status -s INT 20 longlive-optimized serve --port 0 --lora ink.pt:0.5",
        (r"ready after \d",),
    ),
    "longlive-optimized --verbose generate ...": Run(
        "longlive-optimized --verbose generate --prompt 'a red circle' --seconds 1 --out said.mp4",
        (r"registry: rms_norm runs on reference", r"VAE runs on ModulesCodec"),
        ("said.mp4",),
    ),
    # docs/attention.md, docs/convolution.md
    "pytest -m gpu tests/kernels/test_ring_attention.py": selects("pytest -m gpu tests/kernels/test_ring_attention.py"),
    "pytest -m gpu tests/kernels/test_ring_attention_int8.py": selects(
        "pytest -m gpu tests/kernels/test_ring_attention_int8.py"
    ),
    "pytest -m gpu tests/kernels/test_ring_attention_fp8.py": selects(
        "pytest -m gpu tests/kernels/test_ring_attention_fp8.py"
    ),
    **dict.fromkeys(
        [
            f"python tests/measure/triton_kernels.py {what}"
            for what in ("attention", "products", "convolutions --sweep")
        ],
        Run("python tests/measure/triton_kernels.py --help", (r"--sweep",), where="checkout", partly="needs a GPU"),
    ),
    **dict.fromkeys(
        ("python tests/measure/triton_kernels.py attention", "python tests/measure/triton_kernels.py products"),
        Run("python tests/measure/triton_kernels.py --help", (r"--sweep",), where="checkout", partly="needs a GPU"),
    ),
    "longlive-optimized bench kernels causal_conv": Run(prints=(r"causal_conv", r"published")),
    # docs/int8.md
    "python tests/measure/int8_error.py": Run(
        prints=(r"\| normal \| 1536 \| 0\.0029 \|", r"\| large-tokens \| 1536 \|"), where="checkout"
    ),
    "python tests/measure/text_error.py": Run(
        prints=(r"\| int8 \| 0\.0", r"\| fp8, table in bf16 \| 0\.2"), where="checkout"
    ),
    "python -m longlive_optimized.kernels.bench int8_linear": Run(prints=(r"int8_linear",)),
    "longlive-optimized bench quality": smaller(
        "longlive-optimized bench quality --preset ultra --seeds 1 --prompts 0 --picture two.png",
        r"int8|PSNR",
        writes=("two.png",),
    ),
    "longlive-optimized bench quality --preset speed --picture FILE": smaller(
        "longlive-optimized bench quality --preset speed --seeds 1 --prompts 0 --blocks 2 --picture three.png",
        r"psnr_median_db",
        writes=("three.png",),
    ),
    # docs/performance.md and docs/measurements/README.md: the commands of the figures
    "longlive-optimized bench quality --model M --preset speed --seeds 1 --blocks 3": smaller(
        f"longlive-optimized bench quality {SMALL} --preset speed --seeds 1 --blocks 2", r"psnr_median_db"
    ),
    "longlive-optimized bench quality --model M --seeds 1 --blocks 3": smaller(
        f"longlive-optimized bench quality {SMALL} --seeds 1 --blocks 1", r"turbo", r"psnr_median_db"
    ),
    "longlive-optimized bench quality --model M --height 320 --width 576 --seeds 1 --blocks 3": smaller(
        f"longlive-optimized bench quality {SMALL} --seeds 1 --blocks 1", r"psnr_median_db"
    ),
    "longlive-optimized bench kernels int8_linear int8_linear_gelu": Run(prints=(r"int8_linear_gelu",)),
    "longlive-optimized bench kernels ring_attention_int8 qk_norm_rope_store_int8 rotate_sinks_int8 quantize_keys"
    " quantize": Run(prints=(r"rotate_sinks_int8", r"quantize_keys")),
    "longlive-optimized make-checkpoint M --config 1.3b --text tiny": smaller(
        "longlive-optimized make-checkpoint made --config tiny --text tiny", r"wrote made: \d"
    ),
    "longlive-optimized bench block --model M --height H --width W": smaller(
        f"longlive-optimized bench block {SMALL} --blocks 2 --baseline-blocks 1", *TABLE
    ),
    "longlive-optimized bench block --model M --height H --width W --preset P --blocks 20 --baseline-blocks 0": smaller(
        f"longlive-optimized bench block {SMALL} --preset realtime --blocks 2 --baseline-blocks 0", *TABLE
    ),
    "longlive-optimized bench vae --model M --height H --width W": smaller(
        f"longlive-optimized bench vae {SMALL} --blocks 2", r"decode"
    ),
    "longlive-optimized bench quality --model M": smaller(
        f"longlive-optimized bench quality {SMALL} --seeds 1", r"ours|baseline"
    ),
    "longlive-optimized bench kernels ring_attention": Run(prints=(r"ring_attention",)),
    "python tests/measure/plugin_bench.py M --height H --width W": smaller(
        "python tests/measure/plugin_bench.py $MODEL --height 64 --width 96 --blocks 2 --switches 1", where="checkout"
    ),
    "python tests/measure/server_delay.py --height H --width W": smaller(
        "python tests/measure/server_delay.py --height 64 --width 96 --prompts 2", where="checkout"
    ),
    "python tests/measure/server_soak.py --minutes 30 --messages 10000": smaller(
        "python tests/measure/server_soak.py --minutes 0.2 --messages 40", where="checkout"
    ),
    "python tests/measure/soak.py --minutes 10": smaller(
        "python tests/measure/soak.py --minutes 0.1", where="checkout"
    ),
    "python -m longlive_optimized.tinyworld.evaluate WHAT": smaller(
        "python -m longlive_optimized.tinyworld.evaluate adherence switches no-recache long presets precision "
        "--prompts 1 --seconds 2 --minutes 0.1",
        *(r"adherence", r"no-recache", r"precision"),
    ),
    "bench block": smaller(
        f"longlive-optimized bench block {SMALL} --blocks 2 --json block.json", *TABLE, writes=("block.json",)
    ),
    "python tests/measure/record.py OUT/block_480.json OUT/block_320.json --commit COMMIT": smaller(
        f"longlive-optimized bench block {SMALL} --blocks 2 --json $WORK/b.json && "
        "python tests/measure/record.py $WORK/b.json --commit 0000000 && git status --short docs/measurements",
        r"\?\? docs/measurements/block-.*\.json",
        where="checkout",
    ),
    "pytest -m gpu tests/engine/test_graphs.py": selects("pytest -m gpu tests/engine/test_graphs.py"),
    # docs/scope.md, docs/tinyworld.md
    "pytest tests/demo/test_scope_plugin*.py tests/parity": Run(prints=PASSED, where="checkout"),
    "python -m longlive_optimized.tinyworld.evaluate sheet --prompts 4 --png FILE": Run(
        'python -m longlive_optimized.tinyworld.evaluate sheet --prompts 4 --png sheet.png && python -c "import av; '
        "a, b = (next(av.open(name).decode(video=0)).to_ndarray(format='rgb24').astype(int) "
        "for name in ('sheet.png', '$CHECKOUT/docs/tinyworld-switch.png')); print('alike', abs(a - b).mean() < 1)\"",
        (r"alike True",),  # "draws this"
        ("sheet.png",),
    ),
    "python -m longlive_optimized.tinyworld.evaluate control": smaller(
        "python -m longlive_optimized.tinyworld.evaluate control --prompts 2",
        r"scale 0 +overlap 0\.[0-2]",
        r"scale 1 +overlap 0\.[6-9]",
    ),
    'longlive-optimized generate --model tiny --control disc.mp4 --prompt "a yellow circle moves right over a blue '
    'sea" --seconds 3 --out x.mp4': Run(
        'longlive-optimized generate --prompt "a white circle moves right over a black night" --out disc.mp4 && '
        'longlive-optimized generate --model tiny --control disc.mp4 --prompt "a yellow circle moves right over a blue '
        'sea" --seconds 3 --out x.mp4',
        (r"wrote x\.mp4: .*, 3 s of 96x64",),
        ("x.mp4",),
        partly="the control is a video of the built-in model",
    ),
    "longlive-optimized generate --model tests/tinyworld/half_trained --height 128 --width 192 --prompt "
    '"a sun sinks into the sea" --seconds 4 --enlarge 3 --out x.mp4': Run(
        "longlive-optimized generate --model $CHECKOUT/tests/tinyworld/half_trained --height 128 --width 192 --prompt "
        '"a sun sinks into the sea" --seconds 4 --enlarge 3 --out x.mp4',
        (r"wrote x\.mp4: .*, 4 s of 576x384",),
        ("x.mp4",),
    ),
    # docs/several_gpus.md
    "python: from longlive_optimized import BlockRequest, LongLiveEngine": Run(
        prints=(r"\Atorch\.Size\(\[9, 64, 96, 3\]\)\n\Z",)
    ),
    # docs/examples
    "python docs/examples/frame_loop.py --frames 90": Run(
        prints=(r"out/frame_loop\.mp4: 90 frames, [\d.]+ ms a frame, preset ultra",),
        writes=("out/frame_loop.mp4",),
        where="checkout",
    ),
    "python docs/examples/lora.py --blocks 2": Run(
        prints=(r"scale 0\.5: pixels differ by \d", r"scale 0\.0: pixels differ by 0\.00 of 255"), where="checkout"
    ),
    "python docs/examples/one_video.py --blocks 8 --out out/one_video.mp4": Run(
        prints=(r"out/one_video\.mp4: 93 frames",), writes=("out/one_video.mp4",), where="checkout"
    ),
    "python docs/examples/own_queue.py --blocks 6": Run(prints=(r"\n69 frames",), where="checkout"),
    "python docs/examples/stream.py --frames 60 --out out/stream.gif": Run(
        prints=(r"out/stream\.gif: 60 frames, 6 blocks",),
        writes=("out/stream.gif", "out/stream.json"),
        where="checkout",
    ),
    "python docs/examples/story.py --seconds 4 --out out/story.mp4": Run(
        prints=(r"out/story\.mp4: 64 frames, the same twice: True",),
        writes=("out/story.mp4", "out/story.json"),
        where="checkout",
    ),
    "python docs/examples/two_streams.py --blocks 6": Run(
        prints=(r"out/two_streams\.mp4: 69 frames of 2 streams",), writes=("out/two_streams.mp4",), where="checkout"
    ),
    "python docs/examples/video_input.py --blocks 5": Run(
        prints=(r"out/video_input\.mp4: 57 frames",), writes=("out/video_input.mp4",), where="checkout"
    ),
}

_GPU = "needs a Hopper GPU: pytest -m gpu and tests/measure/ledger.sh are run there"
_CLUSTER = "needs Ray; tests/demo/test_cluster(|_directory|_files).py hold it to its word"
_RANKS = "tests/(engine|cli)/test_ranks.py try it on CPUs, tests/engine/test_ranks_gpu.py on GPUs"
_MEASURED = "measured on an H200; tests/docs/test_performance.py holds figures to their records"
_NET = "downloads many GB"
_SCOPE = "needs a checkout of scope with its requirements"
_JANUS = "needs Janus: tests/demo/test_server_janus.py publishes to it where it is installed"
_DOCKER = "needs Docker: .ci/run builds the image where there is one"
_WHIP = "needs an endpoint: tests/demo/test_server_whip.py makes one and publishes to it"
_SUITE = "the suite itself, minutes: .ci/run runs it"
_PROSE = "says nothing that a command could contradict"
_RULE = "a rule for people who write"
_WORDS = "explains words and duties; names between backquotes are looked up"
_SPEC = "describes the published code, which is not here; tests of the same section hold ours to it"

NOT_RUN: tuple[NotRun, ...] = (
    # Commands
    NotRun("README.md", "*", "./setup_env.sh test", _SUITE),
    NotRun("*", "*", "pytest -q", _SUITE),
    NotRun("docs/api.md", "A model's files", "hf download --local-dir", _NET),
    NotRun("docs/api.md", "From the hub", "hf auth login", "signs in at the hub"),
    NotRun("*", "*", "daydream-scope install .*", _SCOPE),
    NotRun("*", "*", r"pip install --no-build-isolation (-e )?\.", "compiles CUDA for minutes; without CUDA it is run"),
    NotRun("*", "*", r"pip install \.", "without CUDA it is run; tests/build makes such a wheel"),
    NotRun("docs/install.md", "Containers", r"(LONGLIVE_CUDA=OFF )?docker compose up|\[compose.yaml\]", _DOCKER),
    NotRun("docs/install.md", "Wheels", "Both were installed", "tests/build/wheels.py did, for minutes"),
    NotRun("docs/install.md", "Beside scope", "scope's own environment", _SCOPE),
    NotRun("README.md", "What it needs", "<!-- ", "marks for tests/measure/requirements.py"),
    NotRun(
        "docs/CONTRIBUTING.md", "*", "pip install -e '.*", "changes git's hooks; ./setup_env.sh lint installs the same"
    ),
    NotRun("docs/CONTRIBUTING.md", "*", "ruff check .*|clang-format .*|basedpyright", "./setup_env.sh lint runs it"),
    NotRun("docs/int8.md", "*", "python tests/measure/conv_int8_error.py", "minutes"),
    NotRun("docs/int8.md", "*", "python tests/measure/vae_drift.py --blocks 5000", _GPU),
    NotRun("docs/triton.md", "*", "python tests/measure/triton_table.py", "compiles for minutes"),
    NotRun("docs/int8.md", "*", "python -m longlive_optimized.tinyworld.evaluate long .*", "minutes"),
    NotRun(
        "docs/convolution.md", "*", "python tests/native/conv/emulate.py( 3)?", "minutes; the suite runs one schedule"
    ),
    NotRun("docs/convolution.md", "*", "compute-sanitizer", _GPU),
    NotRun("docs/CONTRIBUTING.md", "Test", "compute-sanitizer", _GPU),
    NotRun("docs/scope.md", "Tests", 'export SCOPE_CHECKOUT.*|pytest -s tests/demo/test_real_scope.py|"\\$.*', _SCOPE),
    NotRun("docs/performance.md", "*", "SCOPE_CHECKOUT=.*", _SCOPE),
    NotRun("docs/performance.md", "*", "python tests/measure/janus.py .*", _JANUS),
    NotRun("docs/performance.md", "*", "python tests/measure/page_arrival.py", "needs Chromium; minutes"),
    NotRun("docs/performance.md", "*", "python tests/measure/cluster.py .*", _CLUSTER),
    NotRun("docs/api.md", "*", "longlive-optimized serve --publish janus://.*", _JANUS),
    NotRun("docs/api.md", "*", r"longlive-optimized serve --publish whip\+https://.*", _WHIP),
    NotRun("*", "*", "compute-sanitizer over pytest -m gpu .*", _GPU),
    NotRun(
        "docs/performance.md",
        "*",
        "python tests/measure/(overlap|compare_builds|control|memory|memory_plan|presets|second_gpu|vae_bands).py .*",
        _GPU,
    ),
    NotRun("docs/performance.md", "*", "python tests/measure/sessions.py MODEL .*", _GPU),
    NotRun(
        "docs/CONTRIBUTING.md", "Versions", "tests/measure/versions.sh.*", _NET + "; .ci/run runs its part of video"
    ),
    NotRun(
        "docs/performance.md",
        "Tinyworld",
        "python -m longlive_optimized.tinyworld.train",
        "trains for minutes on a GPU",
    ),
    NotRun(
        "docs/tinyworld.md",
        "A larger one, in training",
        "python -m longlive_optimized.tinyworld.train --from .*",
        "trains on a GPU",
    ),
    NotRun(
        "docs/tinyworld.md",
        "A larger one, in training",
        "python -m longlive_optimized.tinyworld.export DIR FOLDER",
        "wants what a GPU has trained; tests/tinyworld/test_train.py exports",
    ),
    NotRun("docs/tinyworld.md", "Control", "python -m longlive_optimized.tinyworld.control FOLDER", "trains on a GPU"),
    NotRun(
        "docs/performance.md",
        "Tinyworld",
        "python -m longlive_optimized.tinyworld.evaluate control --model FOLDER",
        "wants what a GPU has trained; that of the built-in model is measured alike",
    ),
    NotRun("docs/CONTRIBUTING.md", "Test", "python tests/docs/run_commands.py", "this very script"),
    NotRun("docs/CONTRIBUTING.md", "*", r"\.ci/run", "lint and the suite, minutes: it runs before each merge"),
    # Passages
    NotRun("README.md", "longlive_optimized", "A real-time engine|At 480×832|The published weights", _MEASURED),
    NotRun("README.md", "Measured", ".", _MEASURED),
    NotRun("README.md", "Use it in scope", ".", _SCOPE),
    NotRun("README.md", "Limits", "- (Batch of one|What the warm-up|The pipeline makes)", _GPU),
    NotRun(
        "README.md",
        "*",
        "(Frame by frame|Three lines|To change)",
        _PROSE,
    ),
    NotRun("README.md", "*", r"\[docs/architecture|Apache-2\.0", _PROSE),
    NotRun("docs/CONTRIBUTING.md", "*", "Read |No GPU is needed", _PROSE),
    NotRun("docs/CONTRIBUTING.md", "Write", ".", _RULE),
    NotRun("docs/CONTRIBUTING.md", "Commit", ".", _RULE),
    NotRun("docs/CONTRIBUTING.md", "Test", "A test compares|A command that", _RULE),
    NotRun("docs/CONTRIBUTING.md", "Versions", ".", "results of tests/measure/versions.sh"),
    NotRun("docs/api.md", "*", "A file that is written to while", "tests/weights tries it"),
    NotRun("docs/api.md", "The server", "Scope's parameters", _PROSE),
    NotRun(
        "docs/scope.md",
        "*",
        "[23]\\. |While streaming|scope's two starter|Scope's defects|And where|With a checkout|The first starts",
        _SCOPE,
    ),
    NotRun("docs/architecture.md", "Words", ".", _WORDS),
    NotRun("docs/architecture.md", "Architecture", ".", _PROSE),
    NotRun("docs/architecture.md", "Who owns what", ".", _WORDS),
    NotRun("docs/architecture.md", "Where what comes next will live († = does not exist yet)", ".", "not built yet"),
    NotRun(
        "docs/attention.md", "*", ".", _MEASURED + "; how the kernel works is tried on its emulator by tests/native"
    ),
    NotRun(
        "docs/convolution.md", "*", ".", _MEASURED + "; how the kernel works is tried on its emulator by tests/native"
    ),
    NotRun(
        "docs/int8.md", "*", ".", _MEASURED + "; formulas and layouts by tests/kernels/test_(quantize|int8_linear).py"
    ),
    NotRun("docs/performance.md", "*", ".", _MEASURED),
    NotRun("docs/several_gpus.md", "*", "longlive-optimized (generate|serve) --gpus .*", _GPU),
    NotRun("docs/several_gpus.md", "*", ".", _RANKS),
    NotRun("docs/cluster.md", "*", "longlive-optimized serve --cluster.*", _CLUSTER),
    NotRun("docs/cluster.md", "*", "pip install .*", _CLUSTER),
    NotRun("docs/cluster.md", "*", ".", _CLUSTER),
    NotRun("docs/api.md", "Several GPUs", ".", _RANKS),
    NotRun("docs/triton.md", "*", ".", "what a compiler said; tests/kernels/test_triton_compile.py compiles again"),
    NotRun(
        "docs/tinyworld.md", "*", ".", "the training's history; bench quality and tinyworld.evaluate score the result"
    ),
    NotRun("docs/measurements/README.md", "*", ".", _PROSE),
    NotRun("docs/model.md", "*", ".", _SPEC),
    NotRun("*", "", ".", _PROSE),
)


@dataclass
class Result:
    what: str
    kind: str  # command, claim, names
    seconds: float
    fault: str  # empty where it passed


def try_command(place: Place, command: str, units: list[Unit]) -> str:
    """What is wrong with a command as the documents have it, or an empty text."""
    how = RUN[command]
    where = {"work": place.folder, "checkout": place.checkout}[how.where]
    typed = how.command or command
    if command.startswith("python: "):
        (where / "snippet.py").write_text(next(unit.text for unit in units if unit.kind == "python"))
        typed = "python snippet.py"
    ran = place.run(typed, where)
    faults = [f"status {ran.status}"] if ran.status else []
    faults += [f"does not print {wanted}" for wanted in how.prints if not re.search(wanted, ran.text)]
    faults += [f"does not write {name}" for name in how.writes if not (where / name).is_file()]
    return "; ".join(faults) + f"\n{ran.text[-3000:]}" if faults else ""


def try_claim(claim: Claim, units: list[Unit], place: Place, done: dict[Callable, str]) -> str:
    """What is wrong with a claim, or an empty text. ``done``: what was tried once for all of its passages."""
    if claim.check in done and claim.units(units):
        return done[claim.check]
    try:
        claim.holds(units, place)
        fault = ""
    except Exception:
        fault = traceback.format_exc(limit=-3)
    if not claim.is_of_its_passage:
        done[claim.check] = fault
    return fault


def try_names(units: list[Unit]) -> str:
    """Names between backquotes that are nowhere in the sources."""
    return "".join(f"line {unit.line}: {', '.join(words)}\n" for unit in units if (words := unknown(unit)))


def jobs(place: Place, units: list[Unit], found: Account, made: bool) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """All that is to be tried, with its kind and name; what makes the environment comes first."""
    first = "./setup_env.sh demo"
    for command, where in sorted(found.commands.items(), key=lambda pair: pair[0] != first):
        if not made or not command.startswith("./setup_env.sh"):
            yield "command", command, partial(try_command, place, command, where)
    done: dict[Callable, str] = {}
    for claim in CLAIMS:
        yield "claim", claim.name, partial(try_claim, claim, units, place, done)
    for document in DOCUMENTS:
        mine = [unit for unit in units if unit.document == document]
        yield "names", document, partial(try_names, mine)


def run(place: Place, words: list[str], made: bool) -> list[Result]:
    """Try everything, or what contains one of the words; print each result."""
    units, results = documents(), []
    for kind, name, attempt in jobs(place, units, account(units, RUN, NOT_RUN, CLAIMS), made):
        if words and not any(word in f"{kind}: {name}" for word in words):
            continue
        began = time.monotonic()
        fault = attempt()
        results.append(Result(name, kind, time.monotonic() - began, fault))
        print(f"{'FAILED' if fault else 'ok':6} {results[-1].seconds:6.1f} s  {kind}: {name}", flush=True)
        if fault:
            print(textwrap.indent(fault.rstrip(), "    "), flush=True)
    return results


def table(results: list[Result], found: Account, made: bool) -> str:
    """Ran, passed, failed, not run and why."""
    lines = [f"{'':30} {'ran':>5} {'passed':>7} {'failed':>7}"]
    for kind, words in (("command", "commands"), ("claim", "claims"), ("names", "documents' names")):
        of = [result for result in results if result.kind == kind]
        failed = sum(bool(result.fault) for result in of)
        lines.append(f"{words:30} {len(of):5} {len(of) - failed:7} {failed:7}")
    partly = Counter(RUN[result.what].partly for result in results if result.kind == "command")
    lines += [f"  of these {count} {how}" for how, count in partly.items() if how]
    lines.append("not run, and why (--list names each)")
    lines += [f"{len(what):6}  {reason}" for reason, what in sorted(found.unrun.items(), key=lambda p: -len(p[1]))]
    if made:
        lines.append(f"{sum(c.startswith('./setup_env.sh') for c in found.commands):6}  --environment was given")
    lines.append(f"{len(found.names_only):6}  no more than the names between backquotes was tried")
    lines += [f"OVERLOOKED: {one}" for one in (*found.overlooked, *found.unused)]
    lines += [f"FAILED: {result.what}" for result in results if result.fault]
    return "\n".join(lines)


def main() -> None:
    """Run all, or what contains one of the words given; print each result as it comes, and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="run only what has one of these in it, such as claim:")
    parser.add_argument("--environment", type=Path, help="a virtual environment with this package; else one is made")
    parser.add_argument("--list", action="store_true", help="say what is not run, and why, and end")
    options = parser.parse_args()
    found = account(documents(), RUN, NOT_RUN, CLAIMS)
    if options.list:
        show(found)
        sys.exit(bool(found.overlooked or found.unused))
    made = options.environment is not None
    with tempfile.TemporaryDirectory(prefix="documents-") as folder:
        place = Place(Path(folder), options.environment and options.environment.absolute())
        results = run(place, options.words, made)
    print(table(results, found, made))
    sys.exit(bool(found.overlooked or found.unused or any(result.fault for result in results)))


def show(found: Account) -> None:
    """What is not run, why, and what nobody has looked at."""
    for reason, what in sorted(found.unrun.items(), key=lambda pair: -len(pair[1])):
        print(f"not run: {len(what)}, {reason}", *what, sep="\n  ")
    passages = [f"{unit.document}:{unit.line} {unit.text:.90}" for unit in found.names_only]
    print(f"no more than names tried: {len(passages)}", *passages, sep="\n  ")
    print("overlooked:", *found.overlooked, *found.unused, sep="\n  ")


if __name__ == "__main__":
    main()
