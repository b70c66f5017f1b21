"""What the documents say of this repository itself: its map, its rules, the kernels' constants, the built-in model."""

from __future__ import annotations

import re
import subprocess
import tomllib

import torch

from longlive_optimized.config import OptimizationConfig
from longlive_optimized.kernels.registry import ORDER

from .claims import lists, says
from .markdown import Unit
from .place import ROOT, Place
from .tables import names

ARCHITECTURE, CONTRIBUTING = "docs/architecture.md", "docs/CONTRIBUTING.md"
ATTENTION, CONVOLUTION = "docs/attention.md", "docs/convolution.md"
TINYWORLD, MEASUREMENTS = "docs/tinyworld.md", "docs/measurements/README.md"
_FILE = re.compile(r"(?:[\w.-]+/)*[\w-]+\.(?:py|cu|cuh|h|cpp|md|sh)")


def source(name: str) -> str:
    for base in (ROOT, ROOT / "longlive_optimized"):
        if (base / name).is_file():
            return (base / name).read_text()
    found = [path for path in ROOT.glob(f"csrc/**/{name}")]
    assert found, f"there is no {name}"
    return "".join(path.read_text() for path in found)


def _names_are_in_their_files(units: list[Unit]) -> None:
    """A row that names one file and an identifier has that identifier in the file, or in a file that it names."""
    for unit in units:
        spans = names(unit.text)
        files = [span for span in spans if _FILE.fullmatch(span) and "NAME" not in span and not span.startswith(".")]
        text = "".join(source(name) for name in files)
        for span in spans if files else ():
            if re.fullmatch(r"[A-Za-z_]\w*", span) and ("_" in span or span[0].isupper()):
                assert span in text or span in {"SciPy"}, f"{span} is not in {', '.join(files)}"


@lists(ARCHITECTURE, "Who owns what")
@lists(ARCHITECTURE, "Where to look")
def who_owns_what(units: list[Unit]):
    _names_are_in_their_files([unit for unit in units if "kernel ran" not in unit.text])


@lists(ARCHITECTURE, "The data's way", "text")
def the_picture(units: list[Unit]):
    room = ""
    for line in units[0].text.splitlines():
        for name in _FILE.findall(line):
            room = name.rpartition("/")[0] if "/" in name else room
            tried = [name, f"{room}/{name}", f"demo/server/{name}", f"engine/{name}", f"demo/scope_integration/{name}"]
            assert any((ROOT / "longlive_optimized" / t).is_file() for t in tried), name
    assert "keeps the last 32" in units[0].text and OptimizationConfig().prompt_cache_size == 32


@says(ARCHITECTURE, "**Import rules.** A room imports only rooms before it: kernels, text, model, vae, weights, engine")
def import_rules(place: Place):
    place.passes("tests/docs/test_imports.py")


@says(ARCHITECTURE, "the first of cuda, triton, library, reference that takes the arguments")
def order_of_backends():
    assert ORDER == ("cuda", "triton", "library", "reference")


@says(
    ARCHITECTURE, "seed + first latent frame of a block seeds its noise: streams with seeds s and s + 3 draw the same"
)
def seeds():
    from longlive_optimized.engine.noise import BlockNoise

    first, later = (BlockNoise(seed, torch.zeros(16, 8, 12)) for seed in (5, 8))
    assert torch.equal(next(first.block(3, 3)), next(later.block(0, 3)))


@lists(CONTRIBUTING, "Add an operator", "item")
def steps_of_an_operator(units: list[Unit]):
    assert len(units) == 7
    schema = source("csrc/register.cpp")
    operators = re.findall(r'm\.def\("(\w+)', schema)
    assert operators
    for name in operators:
        assert f"\ndef {name}(" in _text_of("kernels") and (ROOT / f"kernels/bench/{name}.py").is_file(), name
        assert (ROOT / f"tests/kernels/test_{name}.py").is_file() or name in _text_of("tests/kernels"), name


def _text_of(folder: str) -> str:
    return "".join(path.read_text() for path in (ROOT / folder).glob("*.py"))


@says(CONTRIBUTING, "`longlive_optimized/kernels` is a link to `kernels/`")
def the_link():
    assert (ROOT / "longlive_optimized/kernels").is_symlink()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"] == 120


@says(CONTRIBUTING, "`.ci/run` runs these and the suite before a merge.")
def the_gate():
    gate = (ROOT / ".ci/run").read_text()
    assert "./setup_env.sh lint" in gate and "./setup_env.sh test" in gate


@says(CONTRIBUTING, "`area: what it does`, at most 72 characters")
def areas(units: list[Unit]):
    listed = "engine vae model kernels csrc attention conv weights tests docs ci bench demo plugin server cli tinyworld"
    said = units[0].text.partition("Areas: ")[2].rstrip(".").replace(",", "").split()
    assert said == listed.split()


@says(ATTENTION, "4680 rows make 37 tiles × 12 heads = 444 output tiles of 128 queries; on 132 multiprocessors")
def waves():
    tiles = -(-4680 // 128)
    assert (tiles, 12 * tiles, round(12 * tiles / 132, 2)) == (37, 444, 3.36)
    flop = 4 * 12 * 4680 * 18720 * 128
    assert round(flop / 1e9) == 538  # "149 calls ... 538 GFLOP each"


@says(ATTENTION, "Rings of fewer than 3072 tokens (`kSplitFrom`) are not split")
def split_from():
    assert "kSplitFrom = 3072" in source("csrc/attention/ring.h")


@says(ATTENTION, "24 registers for the producer, 240 for the consumers (232 used), no spills.")
@says(CONVOLUTION, "no spills (24 and 240 registers)")
def registers():
    assert "kProducerRegisters = 24, kConsumerRegisters = 240;" in source("csrc/common/sm90/pipeline.cuh")


@lists(ATTENTION, "How it is tested")
@lists(CONVOLUTION, "How it is tested")
@lists(CONVOLUTION, "The decoder around it")
def tests_are_there(units: list[Unit]):
    for unit in units:
        for span in names(unit.text):
            if "/" in span and " " not in span:
                assert (
                    (ROOT / span).exists()
                    or (ROOT / "longlive_optimized" / span).exists()
                    or any(ROOT.glob(f"{span}*"))
                ), span


@says(ATTENTION, "Drawn by `docs/timelines.py`")
@says(CONVOLUTION, "Drawn by `docs/timelines.py`")
def timelines(place: Place):
    before = {p.name: p.read_bytes() for p in (place.checkout / "docs").glob("*-timeline.svg")}
    ran = place.run("python docs/timelines.py", place.checkout)
    assert ran.status == 0, ran.text
    assert len(before) == 2
    assert before == {p.name: p.read_bytes() for p in (place.checkout / "docs").glob("*-timeline.svg")}


@says(CONVOLUTION, "so four 2×2 convolutions at the low resolution give the same result with 4/9 of the FLOPs")
def folded():
    assert 4 * 4 / (4 * 9) == 4 / 9


@says(TINYWORLD, "5.7 million parameters, trained on a world that a program draws")
def parameters_of_the_built_in_model():
    from longlive_optimized import LongLiveEngine

    engine = LongLiveEngine("tiny", device="cpu")
    # docs/performance.md: "The built-in model: 4.4 million parameters, its autoencoder 1.2, 11.8 MB in all."
    vae = sum(p.numel() for p in engine.vae.parameters()) / 1e6
    rest = sum(p.numel() for p in engine.model.parameters()) + sum(p.numel() for p in engine.text._network.parameters())
    found = rest / 1e6, vae
    assert round(sum(found), 1) in (5.6, 5.7), found


@says("docs/performance.md", "The built-in model: 4.4 million parameters, its autoencoder 1.2, 11.8 MB in all.")
def size_of_the_built_in_model():
    from longlive_optimized.weights.locate import locate

    files = [p for p in locate("tiny").generator.parents[2].rglob("*") if p.is_file() and p != locate("tiny").control]
    total = sum(p.stat().st_size for p in files) / 1e6
    assert round(total, 1) in (11.8, 11.9), total


@lists(MEASUREMENTS, "Measurements")
@says(MEASUREMENTS, "One file is one run of one command: `TOPIC-DATE-NUMBER.json`.")
@says("docs/performance.md", "`tests/measure/report.py` writes this file from the runs in")
@says("README.md", "Every number and its command is in [docs/performance.md](docs/performance.md).")
def figures_are_of_records(place: Place):
    place.passes("tests/docs/test_performance.py tests/docs/test_references.py")


@says(
    "docs/performance.md", "all earlier figures are, too; `tests/measure/ledger.sh M OUT` measures most of them anew."
)
def the_ledger():
    script = ROOT / "tests/measure/ledger.sh"
    ran = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
