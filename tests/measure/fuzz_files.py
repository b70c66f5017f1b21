"""Damage a model's files again and again and see what loading makes of it.

    python tests/measure/fuzz_files.py --cases 2000 --seed 1

Each case spoils one file of a small model in one way (``support/damage.py``), then loads it and makes a block in a
process of its own with bounds on time and memory. It must be refused by an error that names the file, or make the same
picture; another picture is allowed only for the kinds of damage that docs/api.md says nothing can notice, and where
``doctor --verify`` finds it. The last line counts what happened; the exit code is 1 if anything else did.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support.damage import NO_CHECKSUM, USER_LORA, VERIFY, Damage, copy_with_checksums, damage

GOOD = "refused", "same picture", VERIFY, NO_CHECKSUM
_SECONDS, _MEMORY = 60, 12 << 30


class Result(NamedTuple):
    seed: int
    damage: Damage
    outcome: str  # one of GOOD, or what went wrong
    text: str


def picture(folder: Path):
    """Two frames' worth of everything: text, LoRA, both halves of the VAE, and a block."""
    import torch

    from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
    from longlive_optimized.weights.user_lora import UserLora

    config = OptimizationConfig(height=32, width=32, denoising_steps=(1000,), use_prompt_cache=False)
    engine = LongLiveEngine(folder, config, device="cpu", loras=[UserLora(folder / USER_LORA)])
    video = torch.arange(12 * 32 * 32 * 3).remainder(251).byte().view(12, 32, 32, 3)
    return engine.generate_block(BlockRequest("A fox & the sea, 日本 x1.", video=video, noise_scale=0.9))


def judge(folder: Path, spoilt: Damage, healthy) -> tuple[str, str]:
    """What loading the damaged model comes to, and the words of it."""
    from longlive_optimized.weights import CheckpointError
    from longlive_optimized.weights.files import verify

    try:
        frames = picture(folder)
    except (CheckpointError, FileNotFoundError) as error:
        named = spoilt.path.name in str(error) and len(str(error)) < 3000
        return ("refused" if named else "unnamed"), str(error)[:300]
    except BaseException as error:
        return "bare", f"{type(error).__name__}: {error}"[:300]
    if frames.equal(healthy):
        return "same picture", ""
    if spoilt.may != VERIFY:
        return (spoilt.may if spoilt.may in GOOD else "silent"), ""
    try:
        return "silent", verify(folder / spoilt.path)
    except CheckpointError as error:
        return VERIFY, str(error)[:300]


def _work(pristine: Path, pipe) -> None:
    """Damage and judge the seeds that come; None ends it."""
    import torch

    torch.set_num_threads(1)
    healthy = picture(pristine)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()  # CUDA's libraries are large
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY, mapped + _MEMORY))
    pipe.send(("ready", ""))
    while (task := pipe.recv()) is not None:
        folder, spoilt = task
        pipe.send(judge(folder, spoilt, healthy))


def run(pristine: Path, seeds: Iterable[int]) -> Iterator[Result]:
    """The result of each seed. ``pristine`` is a model as ``copy_with_checksums`` leaves it."""
    context = multiprocessing.get_context("spawn")
    worker = None
    for seed in seeds:
        if worker is None:
            pipe, far = context.Pipe()
            worker = context.Process(target=_work, args=(pristine, far), daemon=True)
            worker.start()
            far.close()
            pipe.recv()
        with tempfile.TemporaryDirectory(dir=pristine.parent) as scratch:
            spoilt = damage(pristine, Path(scratch), seed)
            pipe.send((Path(scratch), spoilt))
            try:
                outcome = pipe.recv() if pipe.poll(_SECONDS) else ("hung", f"more than {_SECONDS} s")
            except EOFError:
                worker.join()
                outcome = "died", f"exit code {worker.exitcode}"
        if outcome[0] in ("hung", "died"):
            worker.kill()
            worker = None
        yield Result(seed, spoilt, *outcome)
    if worker is not None:
        pipe.send(None)
        worker.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1, help="of the first case; the others count on")
    parser.add_argument("--all", action="store_true", help="print every case")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from longlive_optimized.weights.random_checkpoint import make_checkpoint

    counts: Counter[str] = Counter()
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp())
    try:
        copy_with_checksums(make_checkpoint(scratch / "made", "tiny"), scratch / "pristine")
        for result in run(scratch / "pristine", range(args.seed, args.seed + args.cases)):
            counts[result.outcome] += 1
            if args.all or result.outcome not in GOOD:
                print(
                    result.seed,
                    result.damage.path.name,
                    result.damage.kind,
                    "->",
                    result.outcome,
                    result.text,
                    flush=True,
                )
    finally:
        shutil.rmtree(scratch)
    print(f"{args.cases} cases in {time.monotonic() - began:.0f} s:", dict(counts))
    return int(not set(counts) <= set(GOOD))


if __name__ == "__main__":
    sys.exit(main())
