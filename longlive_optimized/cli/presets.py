"""``presets``: what there is to choose from, and what each does."""

from __future__ import annotations

from rich.table import Table

from ..config import ALIASES, PRESETS
from .loading import results

WORDS = {
    "quality_stream": "closest to the model, for final takes",
    "balanced": "closest to the model, live: the usual choice",
    "speed": "all steps in 8 bits: hard to tell apart",
    "realtime": "faster, a little softer: one step less, a shorter memory",
    "turbo": "as realtime, in 8 bits: faster still",
    "ultra": "fastest, softest: two steps, for trying things out",
}


def presets() -> None:
    """List the presets, and what each does."""
    table = Table()
    for column in ("preset", "what it does", "steps", "window", "precision"):
        table.add_column(column, no_wrap=column in ("preset", "steps"))
    for name, fields in PRESETS.items():
        also = "".join(f" ({alias})" for alias, of in ALIASES.items() if of == name)
        steps = " ".join(map(str, fields["denoising_steps"]))
        table.add_row(name + also, WORDS[name], steps, str(fields["local_attn_size"]), fields["precision"])
    results.print(table)
