"""The command line as a user meets it."""

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import av
import pytest
import torch

from longlive_optimized.cli import generate, main
from longlive_optimized.cli.generate import parse_switch
from longlive_optimized.weights.locate import locate


@pytest.fixture
def run(monkeypatch):
    """The command in this process, which has loaded torch."""
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)

    def call(*args, check=True) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["longlive-optimized", *map(str, args)])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
        done = SimpleNamespace(returncode=end.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue())
        assert not check or done.returncode == 0, done.stderr
        return done

    return call


def test_in_a_process_of_its_own():
    code = "from longlive_optimized.cli import main; main()"
    command = [sys.executable, "-c", code, "generate", "--out", "x.mp4", "--prompt", " "]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith("error: prompt must hold some text")


def test_generate_writes_a_video_and_its_statistics(run, tmp_path):
    out, report = tmp_path / "deep" / "fox.mp4", tmp_path / "fox.json"
    args = ["--switch", "1:a boat", "--seconds", "2", "--seed", "1", "--device", "cpu", "--json", report]
    done = run("generate", "--prompt", "a fox", "--out", out, "--enlarge", "2", *args)
    with av.open(str(out)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 32 and frames[0].shape == (128, 192, 3) and frames[5].std() > 5
    stats = json.loads(report.read_text())
    assert (stats["config"]["height"], stats["config"]["width"]) == (64, 96)  # the built-in model's own
    assert stats["config"]["denoising_steps"] == [1000, 750, 500, 250] and stats["preset"] == "balanced"
    # Frames 0-8, 9-20, 21-31: the switch at frame 16 takes effect at the next block, frame 21.
    assert ["recache" in block["stages"] for block in stats["blocks"]] == [False, False, True]
    assert "fps" in done.stdout and "prompt switch" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt", " "], "prompt must hold some text"),
        (["--prompt", "a", "--preset", "fast"], "preset must be one of quality_stream"),
        (["--prompt", "a", "--height", "100"], "error: height: Input should be a multiple of 16, got 100"),
        (["--prompt", "a", "--height", "0"], "height"),
        (["--prompt", "a", "--device", "gpu"], "device must be cuda, cuda:N or cpu, got 'gpu'"),
        (["--prompt", "a", "--device", "meta"], "device must be cuda, cuda:N or cpu, got 'meta'"),
        (["--prompt", "a", "--switch", "soon:b"], "--switch must be SECONDS:TEXT"),
        (["--prompt", "a", "--seconds", "0"], "--seconds must be positive"),
        (["--prompt", "a", "--enlarge", "0"], "--enlarge"),
        (["--prompt", "a", "--model", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, args, message):
    done = run("generate", *args, "--out", tmp_path / "x.mp4", check=False)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.parametrize("out", ["x.txt", "x", "."])
def test_what_is_no_mp4_is_named_before_anything_is_loaded(run, tmp_path, monkeypatch, out):
    monkeypatch.setattr(generate, "load_engine", lambda *args: 1 / 0)
    done = run("generate", "--prompt", "a", "--out", tmp_path / out, check=False)
    assert done.returncode == 2 and "--out must be an .mp4 file, got" in done.stderr


def test_a_gpu_without_memory_is_one_line(run, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(generate, "load_engine", full)
    done = run("generate", "--prompt", "a", "--out", tmp_path / "x.mp4", check=False)
    assert done.returncode == 2 and "the GPU is out of memory: close other programs" in done.stderr


def test_a_wrong_backend_is_one_line(tmp_path):
    code = "from longlive_optimized.cli import main; main()"
    command = [sys.executable, "-c", code, "generate", "--out", tmp_path / "x.mp4", "--prompt", "a", "--device", "cpu"]
    env = {**os.environ, "LONGLIVE_BACKEND": "gpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 2 and "LONGLIVE_BACKEND must be one of cuda" in done.stderr and "Trace" not in done.stderr
    assert not (tmp_path / "x.mp4").exists()


def test_make_checkpoint_then_doctor_then_a_broken_file(run, tmp_path):
    folder = tmp_path / "model"
    run("make-checkpoint", folder, "--config", "tiny", "--seed", "3")
    assert "fit together" in run("doctor", folder).stdout
    done = run("doctor", folder, "--verify").stdout
    assert "config.json: has no checksum" in done and "longlive_base.pt: 69 of its records have no checksum" in done
    base = next(folder.rglob("longlive_base.pt"))
    base.write_bytes(base.read_bytes()[:5000])
    done = run("doctor", folder, check=False)
    assert done.returncode == 2 and "longlive_base.pt is damaged or cut short" in " ".join(done.stderr.split())


def test_doctor_verifies(run, tmp_path):
    assert "longlive_base.pt: all checksums are right" in run("doctor", "tiny", "--verify").stdout
    folder = shutil.copytree(locate("tiny").generator.parents[2], tmp_path / "model")
    base = next(folder.rglob("longlive_base.pt"))
    data = bytearray(base.read_bytes())
    data[len(data) // 2] ^= 1
    base.write_bytes(data)
    assert run("doctor", folder).returncode == 0  # a mapped read cannot see it
    done = run("doctor", folder, "--verify", check=False)
    assert done.returncode == 2 and "longlive_base.pt is damaged" in done.stderr and "record data/" in done.stderr
    done = run("doctor", "--verify", check=False)
    assert done.returncode == 2 and "--verify needs a model folder" in done.stderr


def test_benches(run, tmp_path):
    report, size = tmp_path / "block.json", ["--height", "32", "--width", "32", "--device", "cpu"]
    run("bench", "block", *size, "--blocks", "2", "--baseline-blocks", "1", "--json", report)
    row = json.loads(report.read_text())
    assert row["blocks"] == 2 and row["dit_ms"] > 0 and row["baseline_dit_ms"] > 0 and row["switch_wall_ms"] > 0
    run("bench", "vae", *size, "--blocks", "1", "--json", report)
    assert json.loads(report.read_text())["decode_ms"] > 0
    run("bench", "switch", *size, "--switches", "2", "--json", report)
    row = json.loads(report.read_text())
    assert row["switch_wall_ms"] >= row["switch_recache_ms"] > 0 and row["switch_at_random_wall_ms"] > 0
    run("bench", "quality", *size, "--seeds", "1", "--prompts", "0", "--json", report)
    row = json.loads(report.read_text())
    assert row["max_flow_error_ours"] < 1e-5 and 0.5 < min(row["logit_std_estimate"]) < 6
    assert 0 <= row["pixels_ours"] < 1e-5 and row["pixels_modules"] == 0


@pytest.mark.parametrize("text", ["2", "x:y", "-1:y", "nan:y", "inf:y", "2:", "2: "])
def test_bad_switches(text):
    with pytest.raises(ValueError, match="SECONDS:TEXT"):
        parse_switch(text)


def test_switch_text_may_hold_colons():
    assert parse_switch("2.5:a clock: 12:30") == (2.5, "a clock: 12:30")
