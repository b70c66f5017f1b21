"""The command line as a user meets it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch

import longlive_optimized.cli
from longlive_optimized.cli import generate
from longlive_optimized.cli.mistakes import told
from longlive_optimized.cli.story import parse_switch
from longlive_optimized.config import OptimizationConfig
from longlive_optimized.engine import memory_plan
from longlive_optimized.engine.engine import LongLiveEngine
from longlive_optimized.engine.memory_plan import MemoryShort
from longlive_optimized.weights.locate import TINY_SIZE, locate
from longlive_optimized.weights.random_tokenizer import write_tokenizer

HEIGHT, WIDTH = TINY_SIZE


def test_in_a_process_of_its_own():
    code = "from longlive_optimized.cli import main; main()"
    command = [sys.executable, "-c", code, "generate", "--out", "x.mp4", "--prompt", " "]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith("error: --prompt must hold some text")


@pytest.mark.parametrize(("preset", "precision"), [("balanced", "float32"), ("ultra", "int8 products")])
def test_generate_says_what_runs(run, tmp_path, preset, precision):
    size = ["--height", "32", "--width", "48", "--seconds", "1", "--device", "cpu"]
    files = ["--out", tmp_path / "fox.mp4", "--json", tmp_path / "fox.json"]
    done = run("generate", "--prompt", "a fox", *size, *files, "--preset", preset)
    stats = json.loads((tmp_path / "fox.json").read_text())
    assert (stats["precision"], stats["dtype"], stats["fallback_blocks"]) == (precision, "float32", 0)
    assert f"cpu, {precision}, {preset}" in " ".join(done.stdout.split())


def test_generate_writes_a_video_and_its_statistics(run, tmp_path):
    out, report = tmp_path / "deep" / "fox.mp4", tmp_path / "fox.json"
    args = ["--switch", "1:a boat", "--seconds", "2", "--seed", "1", "--device", "cpu", "--json", report]
    done = run("generate", "--prompt", "a fox", "--out", out, "--enlarge", "2", *args)
    with av.open(str(out)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 32 and frames[0].shape == (2 * HEIGHT, 2 * WIDTH, 3) and frames[5].std() > 5
    stats = json.loads(report.read_text())
    assert (stats["config"]["height"], stats["config"]["width"]) == TINY_SIZE  # the built-in model's own
    assert stats["config"]["denoising_steps"] == [1000, 750, 500, 250] and stats["preset"] == "balanced"
    # Frames 0-8, 9-20, 21-31: the switch at frame 16 takes effect at the next block, frame 21.
    assert ["recache" in block["stages"] for block in stats["blocks"]] == [False, False, True]
    assert "fps" in done.stdout and "prompt switch" in done.stdout
    assert f"wrote {out}: " in done.stderr and f"kB, 2 s of {2 * WIDTH}x{2 * HEIGHT}, made after" in done.stderr
    assert f"wrote {report}: " in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt", " "], "error: --prompt must hold some text"),
        (["--prompt", "a", "--preset", "fast"], "error: --preset must be one of quality_stream"),
        (["--prompt", "a", "--height", "100"], "error: --height must be a multiple of 16, got 100"),
        (["--prompt", "a", "--height", "0"], "error: --height must be greater than or equal to 16, got 0"),
        (["--prompt", "a", "--seed", "-1"], "error: --seed must be greater than or equal to 0, got -1"),
        (["--prompt", "a", "--preset", "balenced"], "got 'balenced'; did you mean 'balanced'?"),
        (["--prompt", "a", "--device", "gpu"], "error: --device must be cuda, cuda:N or cpu, got 'gpu'"),
        (["--prompt", "a", "--device", "meta"], "device must be cuda, cuda:N or cpu, got 'meta'"),
        (["--prompt", "a", "--switch", "soon:b"], "--switch must be SECONDS:TEXT"),
        (["--prompt", "a", "--seconds", "0"], "--seconds must be positive"),
        (["--prompt", "a", "--enlarge", "0"], "--enlarge"),
        (["--prompt", "a", "--height", "16144"], "error: --height, --width: at most 16128 pixels"),
        (["--prompt", "a", "--enlarge", "400"], "error: --scale must leave pictures of at most 16128 pixels a side"),
        (["--prompt", "a", "--model", "/no/such/folder"], "error: --model: no /no/such/folder"),
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
    assert done.returncode == 2 and "--out must be an .mp4, .gif or .webp file, got" in done.stderr


def test_a_gpu_without_memory_is_one_line(run, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(generate, "load_engine", full)
    done = run("generate", "--prompt", "a", "--out", tmp_path / "x.mp4", check=False)
    assert done.returncode == 2 and "the GPU is out of memory: close other programs" in done.stderr


@pytest.mark.parametrize("limit", ["0", "-2", "nan", "inf"])
def test_a_limit_of_memory_that_is_none_is_one_line(run, tmp_path, limit):
    done = run("generate", "--prompt", "a", "--out", tmp_path / "x.mp4", "--memory-limit", limit, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: --memory-limit must be ")


def test_what_fits_no_gpu_is_one_line(run, tmp_path, monkeypatch):
    def short(*args):
        raise MemoryShort("memory is 2.0 GiB short: 480x832 takes 4.0 GiB of cuda:0 at least, 2.0 GiB are there")

    monkeypatch.setattr(generate, "load_engine", short)
    done = run("generate", "--prompt", "a", "--out", tmp_path / "x.mp4", check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: memory is 2.0 GiB short: 480x832 takes 4.0 GiB of")


def test_what_would_fit_is_told_in_options():
    """Every setting that a MemoryShort may name."""
    config = OptimizationConfig(text_precision="bf16", text_residence="gpu", memory_limit_gib=2.5).sized((480, 832))
    names = [name for name, _ in memory_plan._smaller(config)]
    said = told(MemoryShort(f"2.0 GiB are there (memory_limit_gib=2.5); what would do: {', or '.join(names)}"))
    assert said.startswith("2.0 GiB are there (--memory-limit 2.5); what would do: --text-residence auto, or ")
    assert "--text-precision auto, or --low-memory, or --preset turbo, or 384x640" in said
    said = told(ValueError("low_memory must be false: int8 wants multiples of 32"))
    assert said == "--low-memory must be false: int8 wants multiples of 32"


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
    done = run("doctor", folder, "--verify").stdout
    assert "fit together" in done and "memory on c" in done and "text encoder" in done and "balanced" in done
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
    run("bench", "vae", *size, "--force", "--blocks", "1", "--json", report)
    assert json.loads(report.read_text())["decode_ms"] > 0
    run("bench", "switch", *size, "--force", "--switches", "2", "--json", report)
    row = json.loads(report.read_text())
    assert row["switch_wall_ms"] >= row["switch_recache_ms"] > 0 and row["switch_at_random_wall_ms"] > 0


def test_the_gate(run, tmp_path):
    report, picture = tmp_path / "gate.json", tmp_path / "gate.png"
    some = ["--device", "cpu", "--seeds", "1", "--blocks", "1", "--prompts", "0", "--json", report, "--force"]
    some += ["--height", "64", "--width", "96"]
    shown = run("bench", "quality", *some, "--by-part", "--picture", picture).stdout
    found = json.loads(report.read_text())
    assert [*found["presets"]] == ["speed", "turbo", "ultra"] and found["failures"] == []
    assert all(name in shown for name in ("speed", "psnr_median_db", "change_by_part, ffn_out"))
    for row in found["presets"].values():
        assert row["precision"] == "int8" and row["blocks"] == 2 and row["fallback_blocks"] == 0
        assert row["max_flow_error_ours"] < 1e-5 < row["max_flow_error_int8"] < 0.1
        assert 0.5 < min(row["logit_std_estimate"]) < 6 and row["psnr_median_db"] >= row["psnr_worst_db"] >= 40
        by_part = row["change_by_part"]
        assert [*by_part][:8] == ["all", "qkv", "out", "cross_q", "cross_out", "ffn_in", "ffn_out", "attention"]
        assert all(0 < change < 0.05 for change in by_part.values()) and len(by_part) == 8 + 5
    assert 0 <= found["decoder"]["pixels_ours"] < 1e-5 and found["decoder"]["pixels_modules"] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run("bench", "quality", *some, "--preset", "realtime").returncode == 0
    (row,) = json.loads(report.read_text())["presets"].values()
    assert row["precision"] == "float32" and "psnr_median_db" not in row


@pytest.mark.parametrize(
    "text", ["2", "x:y", "-1:y", "nan:y", "inf:y", "2:", "2: ", "2:&nbsp;", "1:75:y", "1:2:y", "1e3:y"]
)
def test_bad_switches(text):
    with pytest.raises(ValueError, match="SECONDS:TEXT"):
        parse_switch(text)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2.5:a clock: 12:30", (2.5, "a clock: 12:30")),
        ("0:02:a fox", (2, "a fox")),
        ("1:30:a fox", (90, "a fox")),
        ("1:30.5:a fox", (90.5, "a fox")),
        ("1:02:03:a fox", (3723, "a fox")),
        ("100:a fox", (100, "a fox")),
        (".5:a fox", (0.5, "a fox")),
        ("12: 12:30 on a clock", (12, " 12:30 on a clock")),
        ("3:a\nfox [/bold]", (3, "a\nfox [/bold]")),
    ],
)
def test_switches(text, read):
    assert parse_switch(text) == read


BRACKETS = "x [/bold] [serve] [red] :smile:"


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "--prompt", "a", "--out", "x.mp4", "--preset", BRACKETS],
        ["generate", "--prompt", "a", "--out", "x.mp4", "--switch", BRACKETS],
        ["generate", "--prompt", "a", "--out", "x.mp4", "--device", BRACKETS],
        ["generate", "--prompt", "a", "--out", "x.mp4", "--model", BRACKETS],
        ["generate", "--prompt", "a", "--out", BRACKETS],
        ["generate", "--prompt", "a", "--out", "x.mp4", BRACKETS],
        ["serve", "--stun", BRACKETS],
        ["serve", "--turn", BRACKETS, "--turn-username", "a", "--turn-password", "b"],
        ["serve", "--origin", BRACKETS],
        ["serve", "--codec", BRACKETS],
        ["serve", "--ice-address", BRACKETS],
        ["serve", "--host", BRACKETS],
        ["make-checkpoint", "/proc/" + BRACKETS],
        ["doctor", BRACKETS],
        ["bench", "kernels", BRACKETS],
        ["bench", "block", "--preset", BRACKETS],
        ["bench", BRACKETS],
        [BRACKETS],
    ],
)
def test_square_brackets_stay_in_every_message(run, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    done = run(*args, check=False)
    assert done.returncode == 2 and BRACKETS in done.stderr and "Traceback" not in done.stderr


def test_square_brackets_in_what_is_made(run, tmp_path):
    out = tmp_path / f"{BRACKETS}.mp4"
    done = run("generate", "--prompt", BRACKETS, "--switch", f"9:{BRACKETS}", "--seconds", "0.1", "--out", out)
    assert out.is_file() and f"wrote {out}: " in done.stderr
    assert f"the video ended before the switch at 9 s to '{BRACKETS}'" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--turn", "turn:x"], "--turn needs --turn-username and --turn-password"),
        (["--stun", "turn:x"], "--stun must be stun:HOST[:PORT], got 'turn:x'"),
        (["--origin", "demo.example"], "--origin must be https://HOST[:PORT], got 'demo.example'"),
        (["--ice-address", "here"], "--ice-address must be an IP address, got 'here'"),
        (["--viewers", "0"], "--viewers must be greater than or equal to 1, got 0"),
        (["--record-seconds", "601"], "--record-seconds must be less than or equal to 600, got 601"),
        (["--bitrate", "3"], "--bitrate must be greater than or equal to 100000, got 3"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached by others: a --token of at least 16"),
        (["--token", "too short"], "--token must have at least 16 characters"),
        (["--width", "7"], "--width must be a multiple of 16, got 7"),
    ],
)
def test_serve_names_its_options(run, args, message):
    done = run("serve", *args, check=False)
    assert done.returncode == 2 and f"error: {message}" in done.stderr and "too short" not in done.stderr


def test_a_missing_extra_is_named_with_its_remedy(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "longlive_optimized.demo.server.sessions", None)
    done = run("serve", check=False)
    assert done.returncode == 2 and "pip install 'longlive-optimized[serve]'" in done.stderr


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_a_file_that_exists_is_kept_without_force(run, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    args, name = ["generate", "--prompt", "a", "--seconds", "0.1", "--out", "x.mp4", "--json", "x.json"], option[2:]
    file = tmp_path / {"out": "x.mp4", "json": "x.json"}[name]
    file.write_text("mine")
    done = run(*args, check=False)
    assert done.returncode == 2 and f"error: {option}: {file.name} exists; --force overwrites it" in done.stderr
    assert file.read_text() == "mine" and [*tmp_path.iterdir()] == [file]
    run(*args, "--force")
    assert file.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "/proc/x.mp4"], "--out: /proc/x.mp4 cannot be written"),
        (["--out", "x.mp4", "--json", "/proc/x.json"], "--json: /proc/x.json cannot be written"),
        (["--out", "x.mp4", "--json", "."], "--json: . cannot be written: Is a directory"),
        (["--out", f"{'x' * 300}.mp4"], "cannot be written: File name too long"),
        (["--out", "x.mp4", "--json", "x.mp4"], "--json must be another file than --out"),
    ],
)
def test_paths_that_cannot_be_written_are_found_first(run, tmp_path, monkeypatch, args, message):
    monkeypatch.setattr(generate, "load_engine", lambda *args: 1 / 0)
    monkeypatch.chdir(tmp_path)
    done = run("generate", "--prompt", "a", *args, check=False)
    assert done.returncode == 2 and message in done.stderr and not [*tmp_path.iterdir()]


def test_links_stay_links(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "x.mp4", "x.json":
        (tmp_path / name).symlink_to(f"there/{name}")  # where nothing is yet
    run("generate", "--prompt", "a", "--seconds", "0.1", "--out", "x.mp4", "--json", "x.json")
    for name in "x.mp4", "x.json":
        assert (tmp_path / name).is_symlink() and (tmp_path / "there" / name).stat().st_size > 100


@pytest.mark.parametrize("way", ["folder/../x.mp4", "symbolic.json", "hard.json"])
def test_statistics_never_go_over_the_video(run, tmp_path, monkeypatch, way):
    monkeypatch.setattr(generate, "load_engine", lambda *args: 1 / 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.mp4").write_text("mine")
    (tmp_path / "symbolic.json").symlink_to("x.mp4")
    (tmp_path / "hard.json").hardlink_to("x.mp4")
    done = run("generate", "--prompt", "a", "--out", "x.mp4", "--json", way, "--force", check=False)
    assert done.returncode == 2 and "error: --json must be another file than --out" in done.stderr


def test_a_poor_terminal_is_enough(tmp_path):
    code = "from longlive_optimized.cli import main; main()"
    command = [sys.executable, "-c", code, "generate", "--prompt", "日本", "--seconds", "0.1", "--out", "日本.mp4"]
    poor = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "1", "TERM": "dumb"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=poor, cwd=tmp_path)
    assert done.returncode == 0 and "wrote " in done.stderr and (tmp_path / "日本.mp4").exists(), done.stderr


def test_statistics_go_to_a_standard_output_that_is_a_file(tmp_path):
    code = (
        f"import sys; sys.argv = 'x generate --prompt a --seconds .1 --out {tmp_path}/x.mp4 --json /dev/stdout'.split()"
    )
    code += "; from longlive_optimized.cli import main; main()"
    with (tmp_path / "out").open("w") as out:
        assert subprocess.run([sys.executable, "-c", code], stdout=out, timeout=300).returncode == 0
    text = (tmp_path / "out").read_text()
    assert "pixel frame" in text and json.loads(text[text.index("{") :])["preset"] == "balanced"


def test_a_disk_that_is_full_is_named(run, tmp_path):
    args = ["--prompt", "a", "--seconds", "0.1", "--out", tmp_path / "x.mp4", "--json", "/dev/full"]
    done = run("generate", *args, check=False)
    assert done.returncode == 2 and "error: --json: /dev/full cannot be written: No space left" in done.stderr


@pytest.mark.parametrize("when", ["write", "__exit__"])
def test_a_disk_that_fills_up_leaves_no_broken_video(run, tmp_path, monkeypatch, when):
    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device", "x.mp4")

    monkeypatch.setattr(generate.Mp4Writer, when, full)
    done = run("generate", "--prompt", "a", "--seconds", "0.1", "--out", tmp_path / "x.mp4", check=False)
    assert done.returncode == 2 and not (tmp_path / "x.mp4").exists()
    assert f"error: --out: {tmp_path / 'x.mp4'} cannot be written: No space left on device\n" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_tokenizer_for_which_there_is_no_space_is_an_oserror(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", lambda path, **how: None)
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_tokenizer(tmp_path)


def test_bench_and_make_checkpoint_keep_what_is_there(run, tmp_path):
    file = tmp_path / "x.json"
    file.write_text("mine")
    for command in ("kernels", "block", "vae", "switch", "quality"):
        done = run("bench", command, "--json", file, check=False)
        assert done.returncode == 2 and "error: --json: " in done.stderr and file.read_text() == "mine"
    done = run("make-checkpoint", tmp_path, check=False)
    assert done.returncode == 2 and f"error: DIRECTORY: {tmp_path} is there" in done.stderr and "--force" in done.stderr
    assert "wrote" in run("make-checkpoint", tmp_path, "--force").stderr


@pytest.mark.parametrize("made", [0, 2])
def test_ctrl_c_keeps_what_is_made(run, tmp_path, monkeypatch, made):
    blocks, original = [], LongLiveEngine.generate_block

    def generate_block(self, *args):
        if len(blocks) == made:
            raise KeyboardInterrupt
        blocks.append(original(self, *args))
        return blocks[-1]

    monkeypatch.setattr(LongLiveEngine, "generate_block", generate_block)
    out, report = tmp_path / "x.mp4", tmp_path / "x.json"
    done = run("generate", "--prompt", "a", "--out", out, "--json", report, check=False)
    assert done.returncode == 130 and out.exists() == report.exists() == (made > 0)
    if made:
        assert f"wrote {out}: " in done.stderr and f", 1.31 s of {WIDTH}x{HEIGHT}, stopped after" in done.stderr
        with av.open(str(out)) as video:
            assert sum(1 for _ in video.decode(video=0)) == 21
        assert len(json.loads(report.read_text())["blocks"]) == 2


def test_version(run):
    assert run("--version").stdout == f"longlive-optimized {longlive_optimized.__version__}\n"


@pytest.mark.parametrize("command", [[], ["generate"], ["serve"], ["make-checkpoint"], ["doctor"], ["bench", "block"]])
def test_help_loads_no_torch(command):
    code = "import atexit, sys; atexit.register(lambda: print(sorted(sys.modules.keys() & {'torch', 'numpy', 'av'})))"
    code += "; from longlive_optimized.cli import main; main()"
    asked = "-h" if command else "--help"
    done = subprocess.run([sys.executable, "-c", code, *command, asked], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--help" in done.stdout and done.stdout.endswith("\n[]\n")


def test_openmp_waits_without_spinning_and_the_users_wish_stands():
    code = "from longlive_optimized.cli import threads; threads.share_the_machine(); import os, torch"
    code += "; print(os.environ['OMP_WAIT_POLICY'], torch.get_num_threads(), threads.cores())"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    empty = {"OMP_WAIT_POLICY": "", "OMP_NUM_THREADS": ""}
    for given, policy in (
        ({}, "PASSIVE"),
        (empty, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "1"}, "ACTIVE"),
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=plain | given)
        said, threads, cores = done.stdout.split()
        assert said == policy and threads == (given.get("OMP_NUM_THREADS") or cores) and not done.stderr
