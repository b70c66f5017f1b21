"""Keep a run of ``bench block``: JSON of both sizes, as ledger.sh leaves them, to a file of docs/measurements.

python tests/measure/record.py block_480.json block_320.json --commit COMMIT --command COMMAND --state "what is new"

Then ``python tests/measure/report.py`` writes docs/performance.md anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

MEASUREMENTS = Path(__file__).parents[2] / "docs/measurements"

# Tables of a measurement: fields, and the bench's names for them; of two, the second is the 99th percentile.
BLOCK = {
    "dit_ms": ("dit_ms", "dit_p99_ms"),
    "vae_ms": ("vae_ms", "vae_p99_ms"),
    "block_ms": ("block_ms", "block_p99_ms"),
    "fps": "fps",
    "peak_gib": "peak_gib",
    "warmup_s": "warmup_s",
    "baseline_dit_ms": "baseline_dit_ms",
    "baseline_by_ours": "baseline_over_engine",
}
SHARES = {f"{part}_ms": f"{part}_ms" for part in ("attention", "gemm", "pointwise")} | {
    "memset_ms": "memory_ms",
    "gaps_ms": "gaps_ms",
    "sum_ms": "span_ms",
}
PRESET_SWITCH = {f"{block}_ms": f"preset_{block}_ms" for block in ("before", "first", "second", "after")}
PROMPT_SWITCH = {
    "last_pixel_ms": "switch_wall_ms",
    "first_pixel_ms": "switch_first_pixel_ms",
    "text_ms": "switch_text_ms",
    "recache_ms": "switch_recache_ms",
    "denoise_ms": "switch_denoise_ms",
    "at_random_last_ms": "switch_at_random_wall_ms",
    "at_random_first_ms": "switch_at_random_first_pixel_ms",
}


def rows(bench: dict) -> list[dict]:
    """The rows of one size's run; what the run left out is left out here."""
    size = {"size": f"{bench['height']}×{bench['width']}"}
    found = [{"table": "block"} | size | _fields(bench, BLOCK)]
    if shares := _fields(bench.get("shares", {}), SHARES):
        found.append({"table": "shares"} | size | shares)
    if switch := _fields(bench, PRESET_SWITCH):
        longer = {"longer_ms": round(bench["preset_first_ms"] - bench["preset_before_ms"], 1)}
        found.append({"table": "preset switch"} | size | switch | longer)
    if switch := _fields(bench, PROMPT_SWITCH):
        decode = [round(bench[f"switch_{part}_ms"], 1) for part in ("decode", "decode_rest")]
        found.append({"table": "prompt switch"} | size | switch | {"decode_ms": decode})
    return found


def _fields(bench: dict, names: dict) -> dict:
    row: dict[str, object] = {}
    for field, name in names.items():
        digits = 2 if field.endswith("by_ours") else 1
        match name:
            case (middle, end) if middle in bench:
                row[field] = {"median": round(bench[middle], digits), "p99": round(bench[end], digits)}
            case str() if bench.get(name) is not None:
                row[field] = round(bench[name], digits)
    return row


def write(run: dict, folder: Path = MEASUREMENTS) -> Path:
    """Put a run of ``block`` into the next free file of its day."""
    number = 1
    while (path := folder / f"block-{run['date']}-{number}.json").exists():
        number += 1
    fields = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in run.items()]
    lines = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in run["rows"])
    fields[list(run).index("rows")] = f'  "rows": [\n{lines}\n  ]'
    path.write_text("{\n" + ",\n".join(fields) + "\n}\n")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--device", help="if more is to be said than its name")
    parser.add_argument("--command", default="longlive-optimized bench block --model M --height H --width W")
    parser.add_argument("--state", default="")
    given = parser.parse_args()
    benches = [json.loads(file.read_text()) for file in given.files]
    device, software = benches[0]["device"], f"torch {benches[0]['torch']}"
    head = {"date": datetime.date.today().isoformat(), "commit": given.commit, "device": given.device or device}
    head |= {"command": given.command, "state": given.state, "software": software}
    print(write(head | {"rows": [row for bench in benches for row in rows(bench)]}))
