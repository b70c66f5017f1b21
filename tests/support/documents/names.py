"""Names between backquotes: each word of them must be a word of the sources, each option one of its command's."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

from .markdown import Unit
from .place import ROOT

_WORD = re.compile(r"[A-Za-z_]\w*")
_ROOMS = ("csrc", "kernels", "longlive_optimized", "tests", "docs", ".ci")
_READ = {".py", ".cu", ".cuh", ".h", ".cpp", ".sh", ".toml", ".txt", ".js", ".html", ".json", ".in.md", ""}
# Of other programs, and of the published code that docs/model.md and docs/scope.md describe.
ELSEWHERE = frozenset(
    "NOT_RUN run_commands negotiated TORCH_CUDA_ARCH_LIST symlinks NAME_kernel test_NAME kConstant pow "
    "patch_size qk_norm cross_attn_norm timestep_shift num_frame_per_block use_infinite_attention inference use_ema "
    "interactive_inference generator_optimizer critic_optimizer block_mask seq_len context_noise warp_denoising_step "
    "num_output_frames switch_frame_indices SwitchCausalInferencePipeline conditioning_embeds_updated ffmpeg rtsp v4l2 "
    "video10 rawvideo".split()
)
_PLACEHOLDER = re.compile(r"[A-Z]{1,10}|[a-z]\w?|_(?:s|gib)|a_by_ours")


@functools.cache
def _sources() -> dict[str, str]:
    """Names and texts of all files but documents and what tries them."""
    rooms = [path for room in _ROOMS for path in (ROOT / room).rglob("*")]
    own = ("tests/support/documents/", "tests/docs/run_commands.py", "tests/docs/test_run_commands.py")
    files = [path for path in (*ROOT.iterdir(), *rooms) if path.is_file() and "__pycache__" not in path.parts]
    names = {path.relative_to(ROOT).as_posix(): path for path in files}
    return {
        name: path.read_text(errors="replace") if path.suffix in _READ else ""
        for name, path in names.items()
        if not name.startswith(own)
    }


def _texts() -> Iterable[str]:
    return _sources().values()


@functools.cache
def words() -> frozenset[str]:
    """All identifiers of the sources and the names of their files."""
    return frozenset(word for name, text in _sources().items() for word in _WORD.findall(f"{name} {text}"))


def unknown(unit: Unit) -> list[str]:
    """Words between backquotes that no source has."""
    if "does not exist yet" in unit.section:
        return []
    return _words(unit) + _options(unit) + _in_commands(unit)


def _in_commands(unit: Unit) -> list[str]:
    """Files and environment variables of a shell line that are nowhere."""
    if unit.kind != "shell":
        return []
    files = re.findall(r"\b(?:tests|docs|csrc)/[\w/.-]+\.\w+", unit.command)
    lost = [name for name in files if "path/to" not in name and not (ROOT / name).is_file()]
    return lost + [name for name in re.findall(r"\b[A-Z]+_[A-Z_]+\b", unit.command) if name not in words()]


@functools.cache
def options_of(command: str) -> frozenset[str]:
    """Of ``longlive-optimized COMMAND``, those before the command included; of all commands where it is none."""
    import typer

    from longlive_optimized.cli import app

    group: Any = typer.main.get_command(app)
    commands = {name: each for name, each in group.commands.items() if name != "bench"}
    commands |= {f"bench {name}": each for name, each in group.commands["bench"].commands.items()}
    chosen = [commands[command]] if command in commands else [*commands.values()]
    return frozenset(option for each in (group, *chosen) for parameter in each.params for option in parameter.opts)


def _options(unit: Unit) -> list[str]:
    """Options that the command does not have, or, beside no command of ours, no program of the sources."""
    texts, found = [*unit.spans, *([unit.command] if unit.kind == "shell" else [])], []
    for text in texts:
        ours = re.match(r"(?:longlive-optimized )?(bench \w+|generate|serve|doctor|make-checkpoint)\b", text)
        known = options_of(ours[1]) if ours else options_of("") | _literals()
        found += [option for option in re.findall(r"(?<!\S)--[a-z][\w-]*", text) if option not in known]
    return found


@functools.cache
def _literals() -> frozenset[str]:
    return frozenset(option for text in _texts() for option in re.findall(r"--[a-z][\w-]*", text)) | {"--local-dir"}


def _words(unit: Unit) -> list[str]:
    found = [word for span in unit.spans for word in _WORD.findall(span)]
    return [w for w in found if w not in words() and w not in ELSEWHERE and not _PLACEHOLDER.fullmatch(w)]
