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
    table = Table.grid(padding=(0, 2))
    for name, fields in PRESETS.items():
        also = "".join(f", {alias}" for alias, of in ALIASES.items() if of == name)
        steps = ",".join(map(str, fields["denoising_steps"]))
        figures = f"steps {steps}; window {fields['local_attn_size']}; {fields['precision']}"
        table.add_row(name + also, f"{WORDS[name]}\n{figures}")
    results.print(table)
