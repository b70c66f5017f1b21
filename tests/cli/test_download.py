"""``download``, and ``--model ORG/NAME``, against a small hub on loopback."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants

from longlive_optimized.cli import download
from longlive_optimized.plain import size_text
from longlive_optimized.weights.locate import locate
from support.hub import LONGLIVE, PIECE, Repo

TOKEN = "hf_averysecrettokenofatester"
BASE = "longlive_base.pt"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (999_999_999, "1 GB"),
        (5_684_000_000, "5.68 GB"),
        (2_345_678_000_000, "2346 GB"),
    ],
)
def test_sizes_in_words(nbytes, text):
    assert size_text(nbytes) == text


def test_sizes_are_said_first(run, hub, tmp_path):
    done = run("download", tmp_path / "models", "--vace", "--yes")
    lines = done.stderr.splitlines()
    assert any(re.fullmatch(rf"{LONGLIVE}: models/{BASE} +4\.48 MB", line) for line in lines)
    [total] = [line for line in lines if "to be downloaded" in line]
    size = r"(10\.8 MB) of \1 are to be downloaded"
    assert re.fullmatch(rf"{size}, to {tmp_path}/models, where [\d.]+ GB are free", total), total
    assert done.stdout == f"{tmp_path / 'models'}\n"
    hub.forget()
    again = run("download", tmp_path / "models", "--vace")
    assert re.search(r"all 10\.8 MB are there", again.stderr) and again.stderr.count("is there") == 11 and hub.sent == 0


def test_it_asks_on_a_terminal(run, hub, monkeypatch):
    answers, asked = [False, True], []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(download.typer, "confirm", lambda text, **how: asked.append(text) or answers.pop(0))
    assert run("download", check=False).returncode == 1 and hub.sent == 0
    assert run("download").stdout == f"{LONGLIVE}\n" and len(asked) == 2
    run("download"), run("download", "--yes")
    assert len(asked) == 2, "there is nothing to ask about"


@pytest.mark.parametrize("model", ["here", "/a/b", "a/b/c", "a/b@"])
def test_what_is_no_repository(run, hub, model):
    done = run("download", "--model", model, check=False)
    assert done.returncode == 2 and "error: --model must be ORG/NAME or ORG/NAME@REVISION" in done.stderr
    assert hub.log == []


def test_offline(run, hub, monkeypatch, tmp_path):
    folder = tmp_path / "a folder"
    run("download", folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = run("download", folder)
    assert "HF_HUB_OFFLINE is set" in done.stderr and "all of it is on this machine" in done.stderr
    done = run("download", folder, "--vace", check=False)
    assert done.returncode == 2
    assert f"reached:\n  longlive-optimized download '{folder}' --vace\n" in done.stderr
    done = run("download", check=False)
    assert done.returncode == 2 and done.stderr.endswith("\n  longlive-optimized download\n")


@pytest.mark.parametrize("command", [["download"], ["generate", "--prompt", "a", "--out"], ["bench", "vae", "--json"]])
def test_no_command_shows_a_token(run, hub, monkeypatch, tmp_path, command):
    hub.repos[LONGLIVE].token = "hf_another"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    args = [] if command == ["download"] else [tmp_path / ("x" + {"--out": ".mp4"}.get(command[-1], ".json"))]
    done = run("--verbose", *command, *args, "--model", LONGLIVE, check=False)
    assert done.returncode == 2 and f"does not show {LONGLIVE} (401)" in done.stderr
    assert TOKEN not in done.stdout + done.stderr and hub.sent == 0


def test_generate_from_a_repository(run, hub, monkeypatch, tmp_path):
    """Downloaded at first, sizes said; then offline."""
    size = ["--height", "32", "--width", "32", "--seconds", "0.1", "--model", LONGLIVE]
    done = run("generate", "--prompt", "a", *size, "--out", tmp_path / "a.mp4")
    said = done.stderr.index("8.79 MB of 8.79 MB are to be downloaded")
    assert said < done.stderr.index(f"loaded {LONGLIVE} on cpu") and (tmp_path / "a.mp4").is_file()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget()
    done = run("generate", "--prompt", "a", *size, "--out", tmp_path / "b.mp4")
    assert "downloaded" not in done.stderr and hub.log == []
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    done = run("doctor", LONGLIVE, "--verify")
    assert f"{LONGLIVE} is complete and its parts fit together" in done.stdout
    assert done.stdout.count("as downloaded") == 6


def test_doctor_says_what_mends(run, hub, tmp_path):
    """A repository that is not here, a folder that is half there, and one that is damaged: each by its command."""
    done = run("doctor", LONGLIVE, check=False)
    assert done.returncode == 2 and done.stderr.endswith(
        "lacks generator, lora, config, vae, tokenizer, text; get what is missing by\n  longlive-optimized download\n"
    )
    hub.cut, hub.down_after_cut = {"lora.pt": [PIECE]}, True
    folder = tmp_path / "models"
    assert run("download", folder, check=False).returncode == 2
    done = run("doctor", folder, check=False)
    assert done.returncode == 2 and done.stderr.endswith(f"\n  longlive-optimized download {folder}\n")
    hub.down = False
    run("download", folder)
    vae = locate(folder).vae
    os.truncate(vae, vae.stat().st_size // 2)
    done = run("doctor", folder, check=False)
    assert done.returncode == 2 and done.stderr.endswith(f"\n  longlive-optimized download {folder} --force\n")
    run("download", folder, "--force")
    run("doctor", folder, "--verify")


def test_a_lora_whose_download_was_interrupted(run, hub, tmp_path):
    """A model is used without one where there is none; but not where one is half there."""
    folder = tmp_path / "models"
    run("download", folder)
    lora = locate(folder).lora
    begun = folder / f"LongLive-1.3B/.cache/huggingface/download/models/lora.pt.{'0' * 64}.incomplete"
    begun.write_bytes(lora.read_bytes()[:1000])
    locate(folder)
    lora.unlink()
    with pytest.raises(FileNotFoundError, match=f"download of {folder} was interrupted(.|\n)*download {folder}$"):
        locate(folder)
    begun.unlink()
    assert locate(folder).lora is None


def test_ctrl_c(hub, tmp_path):
    """By a signal, in a process of its own with the client's own variables: it says how to go on, and goes on."""
    hub.pace = 0.005
    code = f"""
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = {PIECE}
from longlive_optimized.cli import main
main()
"""
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-P", "-c", code, "download"]
    begun = subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.PIPE, text=True)
    for _ in range(2000):
        if hub.sent > 1_000_000:
            break
        time.sleep(0.01)
    begun.send_signal(signal.SIGINT)
    told = begun.communicate(timeout=30)[1]
    assert begun.returncode == 130 and told.rstrip("\n").endswith(
        "stopped. Go on with\n  longlive-optimized download"
    ), told
    parts = [*(tmp_path / "home").rglob("*.incomplete")]
    kept = sum(part.stat().st_size for part in parts)
    assert kept > 500_000
    hub.forget()
    hub.pace = 0.0
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == f"{LONGLIVE}\n", done.stderr
    assert "are there" in done.stderr and 0 < hub.sent <= 8_790_000 - kept


def test_serve_without_a_model_tells_of_the_real_one(hub, capsys):
    download.tell_of_the_real_one()
    told = capsys.readouterr().err
    assert "built-in model" in told and "about 14 GB" in told and "  longlive-optimized download\n" in told
    assert f"  longlive-optimized serve --model {LONGLIVE}\n" in told and hub.log == []
    download.have(LONGLIVE)
    capsys.readouterr()
    download.tell_of_the_real_one()
    told = capsys.readouterr().err
    assert "on this machine too" in told and "optimized download" not in told


def test_another_model(run, hub, tmp_path):
    """Of the repository is only the generator, and its LoRA if it has one; a folder then says which model it is of."""
    hub.repos["a/fox"] = Repo()
    hub.repos["a/fox"].commit({f"models/{BASE}": hub.repos[LONGLIVE].files[f"models/{BASE}"]}, "main", "v1")
    assert run("download", "--model", "a/fox@v1").stdout == "a/fox@v1\n"
    assert Path(constants.HF_HUB_CACHE) in locate("a/fox@v1").generator.parents
    hub.repos["a/fox"].commit({f"models/{BASE}": bytes(100_000)}, "main")
    hub.cut, hub.down_after_cut = {BASE: [PIECE]}, True
    folder = tmp_path / "fox"
    done = run("download", folder, "--model", "a/fox", check=False)
    assert done.stderr.endswith(f"Go on with\n  longlive-optimized download {folder} --model a/fox\n")
    hub.down = False
    run("download", folder, "--model", "a/fox")
    assert locate(folder).generator.read_bytes() == bytes(100_000)
    done = run("download", folder, check=False)
    assert done.returncode == 2 and f"is not models/{BASE} of {LONGLIVE}: --force replaces it" in done.stderr
