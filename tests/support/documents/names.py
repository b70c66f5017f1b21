"""Names between backquotes: each word of them must be a word of the sources."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

from .markdown import Unit
from .place import ROOT

_WORD = re.compile(r"[A-Za-z_]\w*")
_READ = {".py", ".cu", ".cuh", ".h", ".cpp", ".sh", ".toml", ".txt", ".js", ".html", ".json", ".in.md", ""}
# Of other programs, and of the published code that docs/model.md and docs/scope.md describe.
ELSEWHERE = frozenset(
    "TORCH_CUDA_ARCH_LIST symlinks NAME_kernel test_NAME kConstant pow "
    "patch_size qk_norm cross_attn_norm timestep_shift num_frame_per_block use_infinite_attention inference use_ema "
    "interactive_inference generator_optimizer critic_optimizer block_mask seq_len context_noise warp_denoising_step "
    "num_output_frames switch_frame_indices SwitchCausalInferencePipeline conditioning_embeds_updated".split()
)
_PLACEHOLDER = re.compile(r"[A-Z]{1,10}|[a-z]\w?|_(?:s|gib)|a_by_ours")


@functools.cache
def words() -> frozenset[str]:
    """All identifiers of the sources and the names of their files; documents, and what tries them, do not count."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], check=True, capture_output=True, text=True)
    found: set[str] = set()
    for name in listed.stdout.splitlines():
        path = Path(name)
        if path.is_relative_to("tests/support/documents") or name == "tests/docs/run_commands.py":
            continue
        found |= set(_WORD.findall(name))
        if path.suffix in _READ and (ROOT / path).is_file():
            found |= set(_WORD.findall((ROOT / path).read_text(errors="replace")))
    return frozenset(found)


def unknown(unit: Unit) -> list[str]:
    """Words between backquotes that no source has."""
    if "does not exist yet" in unit.section:
        return []
    found = [word for span in unit.spans for word in _WORD.findall(span)]
    return [w for w in found if w not in words() and w not in ELSEWHERE and not _PLACEHOLDER.fullmatch(w)]
