"""Write docs/performance.md from docs/measurements: ``python tests/measure/report.py``.

Its words are in performance.in.md beside this file; the tables and sources that they name are made here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from string import Template

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs/performance.md"
SIZES = ("480×832", "320×576")
Run = dict  # a file of docs/measurements, and its name
Found = dict[object, tuple[dict, Run]]  # rows, each with its run
Column = str | Callable[[dict], object]  # a row's field, or a function of the row


def report() -> str:
    """The whole document."""
    words = Template((Path(__file__).parent / "performance.in.md").read_text())
    return words.substitute(engine() | vae() | pictures() | kernels() | others())


# ----------------------------------------------------------------------------------------------------------------------
# Runs


def runs(topic: str) -> list[Run]:
    """A topic's runs, oldest first. Raises FileNotFoundError where there are none."""
    found = list((ROOT / "docs/measurements").glob(f"{topic}-[0-9]*.json"))
    if not found:
        raise FileNotFoundError(f"docs/measurements holds no run of {topic}")
    loaded = [json.loads(path.read_text()) | {"name": path.stem} for path in found]
    return sorted(loaded, key=lambda run: (run["date"], int(run["name"].rpartition("-")[2])))


def newest(topics: Sequence[str], key: Callable[[dict], object], kind: str | None = None) -> Found:
    """The newest row of each ``key``, of those whose ``table`` is ``kind``; a key of None leaves a row out.

    Of runs of one day those of later topics count as newer.
    """
    found: Found = {}
    for run in sorted((run for topic in topics for run in runs(topic)), key=lambda run: run["date"]):
        for row in run["rows"]:
            if (kind is None or row.get("table") == kind) and (name := key(row)) is not None:
                found.pop(name, None)
                found[name] = row, run
    return found


def by_size(topics: Sequence[str], kind: str | None = None) -> Found:
    """The newest row of each size."""
    found = newest(topics, lambda row: row["size"], kind)
    return {size: found[size] for size in SIZES}


def of_kind(run: Run, kind: str) -> list[dict]:
    """A run's rows of one table."""
    return [row for row in run["rows"] if row["table"] == kind]


def rows_of(found: Found) -> list[dict]:
    return [row for row, _ in found.values()]


def source(found: Found | Sequence[Run], quote: str = "`") -> str:
    """Date, commit, device and command of runs: a line for each. ``quote`` is empty where no command alone did it."""
    of = [run for _, run in found.values()] if isinstance(found, dict) else found
    lines = dict.fromkeys(f"{stamp(run)}, {run['device']}: {quote}{run['command']}{quote}" for run in of)
    return "  \n".join(lines)


def goals(topic: str) -> str:
    """What was to be reached, as the newest run that says so has it."""
    return next(run["goals"] for run in reversed(runs(topic)) if "goals" in run)


def stamp(run: Run) -> str:
    return f"{run['date']}, {run['commit']}"


def span(topic: str, date: str, size: str, name: str) -> str:
    """The least and the largest of a day's values."""
    rows = [row for run in runs(topic) if run["date"] == date for row in run["rows"]]
    values = [row[name] for row in rows if row.get("size") == size and name in row]
    values = [value["median"] if isinstance(value, dict) else value for value in values]
    return f"{min(values)} to {max(values)} ms in {len(values)} runs" if values else "not measured"


# ----------------------------------------------------------------------------------------------------------------------
# Markdown


def show(value: object, digits: int | None = None) -> str:
    """A cell: a number, ``middle (end)``, several numbers, a text, or nothing."""
    match value:
        case None:
            return ""
        case str():
            return value
        case {"median": middle, "p10": low, "p99": high}:
            return f"{show(middle)} ({show(low)}, {show(high)})"
        case {"median": middle, "p99": end} | {"relative_l2": middle, "largest": end}:
            return f"{show(middle)} ({show(end)})"
        case {"us": time, "tflops": rate}:
            return f"{show(time)} ({show(rate)})"
        case list():
            return ", ".join(map(show, value))
        case float() if digits is None and 0 < abs(value) < 1e-3:
            return f"{value:.1e}".replace("e-0", "e-")
    return str(value) if digits is None else f"{value:.{digits}f}"


def fixed(name: str, digits: int) -> Column:
    """A field with so many digits."""
    return lambda row: show(row[name], digits)


def table(columns: dict[str, Column], rows: Iterable[dict]) -> str:
    """Markdown of rows; ``columns`` are by their headings."""
    cells = [[*columns], ["---"] * len(columns)]
    for row in rows:
        cells.append([show(row.get(of) if isinstance(of, str) else of(row)) for of in columns.values()])
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in cells)


def named(*names: str) -> dict[str, Column]:
    """Columns whose headings are the fields' own names, without units."""
    return {name.removesuffix("_ms").removesuffix("_mib").replace("_", " "): name for name in names}


# ----------------------------------------------------------------------------------------------------------------------
# What the document's words name


def engine() -> dict[str, str]:
    block, shares = by_size(["block"], "block"), by_size(["block"], "shares")
    presets = newest(["presets"], lambda row: (row["preset"], row["size"]), "presets")
    prompts = by_size(["prompt-switch", "block"], "prompt switch")
    switches = newest(["block", "presets"], lambda row: (row.get("from", "balanced"), row["size"]), "preset switch")
    memory = newest(["memory"], lambda row: (row["mode"], row["size"]))
    triton = newest(["triton-block"], lambda row: (row["preset"], row["size"]))
    triton_speed, control = runs("triton-speed")[-1], runs("control")
    ranks, beside, bands, loads = (runs(topic)[-1] for topic in ("ranks", "second-gpu", "vae-bands", "load"))
    plans = newest(["memory-plan"], lambda row: (row["preset"], row["size"], row["way"]))
    times: dict[str, Column] = {"H×W": "size", "DiT ms": "dit_ms", "VAE ms": "vae_ms", "block ms": "block_ms"}
    day = runs("block")[-1]["date"]
    spread = "; ".join(
        f"{size}: block {span('block', day, size, 'block_ms')}, "
        f"baseline's DiT {span('block', day, size, 'baseline_dit_ms')}"
        for size in SIZES
    )
    return {
        "block_source": source(block),
        "block_table": table(
            times
            | {"pixel frame ms": lambda row: show(row["block_ms"]["median"] / 12, 2), "frames/s": "fps"}
            | {"peak GiB": "peak_gib", "warm-up s": "warmup_s", "baseline DiT ms": "baseline_dit_ms"}
            | {"baseline ÷ ours": "baseline_by_ours"},
            rows_of(block),
        ),
        "block_spread": f"On all cards of {day}: {spread}.",
        "block_goals": goals("block"),
        "presets_source": source(presets),
        "presets_table": table(
            {
                "preset": lambda row: f"`{row['preset']}`",
                "steps": lambda row: row["steps_window"][0],
                "window": lambda row: row["steps_window"][1],
                "precision": lambda row: row.get("precision", "bf16"),
                "VAE": lambda row: row.get("vae_precision", "bf16"),
            }
            | times
            | {"÷ balanced": "block_by_balanced", "frames/s": "fps"}
            | {"prompt switch: last pixel, first": "prompt_switch_last_first_ms"}
            | {"peak GiB": "peak_gib", "warm-up s": "warmup_s"},
            rows_of(presets),
        ),
        "memory_source": source(memory),
        "memory_table": table(
            {"preset": "mode", "H×W": "size", "precision": "precision"}
            | {"peak": fixed("peak_gib", 2), "after a block": lambda row: staged(row, "blocks", "allocated_gib")}
            | {"of the device: peak": fixed("reserved_peak_gib", 2)}
            | {"of the device: after": lambda row: staged(row, "blocks", "reserved_gib")}
            | {"weights": lambda row: show(sum(weights(row)), 2)}
            | {part: lambda row, part=part: show(row["parts_gib"][part], 2) for part in ("ring", "decoder")},
            rows_of(memory),
        ),
        "plan_source": source(plans),
        "plan_table": table(
            {"preset": "preset", "H×W": "size", "memory": "way"}
            | {"text encoder": lambda row: planned(row, "text_precision", "text_residence")}
            | {"low_memory": lambda row: "yes" if row["plan"]["low_memory"] else ""}
            | {"plan GiB": lambda row: show(row["plan"]["peak_gib"], 2), "nvidia-smi GiB": fixed("nvidia_smi_gib", 2)}
            | {"tensors: plan": fixed("plan_allocated_gib", 2), "tensors": fixed("allocated_gib", 2)}
            | {"block ms": "block_ms", "new prompt ms": lambda row: row["new_prompt_ms"]["median"]}
            | {"load and first block s": "start_to_first_block_s"},
            rows_of(plans),
        ),
        "triton_source": source(triton, quote=""),
        "triton_table": table(
            {
                "preset": lambda row: f"`{row['preset']}`",
                "H×W": "size",
                "precision": "precision",
                "VAE": "vae_precision",
            }
            | named("denoise_ms", "context_ms", "decode_ms", "block_ms", "attention_ms", "products_ms"),
            rows_of(triton),
        ),
        "triton_speed_source": source([triton_speed], quote=""),
        "triton_speed_table": table(
            {"attention": "state"}
            | named("dit_ms", "decode_ms", "block_ms", "switch_first_pixel_ms")
            | {"warm-up s": "warmup_s", "peak GiB": "peak_gib"},
            triton_speed["rows"],
        ),
        "steering_source": source(control),
        "steering_table": table(
            {"control": "control", "H×W": "size", "steps": lambda row: str(len(row["steps"])), "layers": "precision"}
            | {"block ms": "block_ms", "÷ without": "by_none", "of which encoding": "encode_ms", "frames/s": "fps"}
            | {"longest while it comes and goes": "longest_while_it_comes_and_goes_ms"}
            | {"peak GiB": "peak_gib", "without the module": "peak_gib_without_the_module"},
            [row for run in control for row in run["rows"]],
        ),
        "ranks_source": source([ranks]),
        "ranks_table": table(
            {"GPUs": "ranks", "preset": "preset", "layers": "precision", "VAE": "vae_precision", "rows": "gathered_by"}
            | {"block ms": "block_ms", "÷ one": "by_one"}
            | {"transformer": "transformer_ms", "of which exchange": "exchange_ms"}
            | {"decode": lambda row: row["stages_ms"]["decode"], "frames/s": "fps"}
            | {"block with a prompt switch": "prompt_switch_block_ms", "peak GiB": "peak_gib_of_ranks"},
            ranks["rows"],
        ),
        "beside_source": source([beside]),
        "beside_table": table(
            {"GPUs": "gpus", "preset": "preset", "layers": "precision", "VAE": "vae_precision"}
            | {"ms from block to block": "every_ms", "÷ one": "every_by_one", "frames/s": "fps"}
            | {"denoise": lambda row: row["stages_ms"]["denoise"], "context": lambda row: row["stages_ms"]["context"]}
            | {"decode": lambda row: row["stages_ms"]["decode"]}
            | {"prompt switch to the first frame": lambda row: show(row["switch_to_first_frame_ms"]["median"])}
            | {"most GiB": lambda row: [gpu["most"] for gpu in row["memory_gib"].values()]},
            beside["rows"],
        ),
        "bands_source": source([bands]),
        "bands_table": table(
            {"band": lambda row: f"{row['rank']} of {row['bands']}", "VAE": "precision", "ms a block": fixed("ms", 1)}
            | {"÷ whole": fixed("of_whole", 2), "TFLOP": fixed("tflop", 1), "GiB": fixed("peak_gib", 2)},
            bands["rows"],
        ),
        "load_source": source([loads], quote=""),
        "load_table": table(
            {"build": "build", "load s: first, second": "load_s", "of which the check of the files": "check_s"},
            loads["rows"],
        ),
        "shares_source": source(shares),
        "shares_table": table(
            {"H×W": "size"} | named("attention_ms", "gemm_ms", "pointwise_ms", "memset_ms", "gaps_ms", "sum_ms"),
            rows_of(shares),
        ),
        "prompt_switch_source": source(prompts),
        "prompt_switch_table": table(
            {"H×W": "size", "to the first pixel": "first_pixel_ms", "to the last": "last_pixel_ms"}
            | named("text_ms", "recache_ms", "denoise_ms")
            | {"decode: first, rest": "decode_ms", "at random: first": "at_random_first_ms"}
            | {"at random: last": "at_random_last_ms"},
            rows_of(prompts),
        ),
        "preset_switch_source": source(switches),
        "preset_switch_table": table(
            {"from": lambda row: f"`{row.get('from', 'balanced')}`", "H×W": "size"}
            | named("before_ms", "first_ms", "second_ms", "after_ms")
            | {"first − before": "longer_ms"},
            rows_of(switches),
        ),
    }


def staged(row: dict, stage: str, name: str) -> str:
    """A figure of memory after a stage."""
    return show(row["stages"][stage][name], 2)


def planned(row: dict, *choices: str) -> str:
    """What a plan has chosen, in its words."""
    return ", ".join(row["plan"][choice] for choice in choices)


def weights(row: dict) -> list[float]:
    """GiB of a row's weights, part by part."""
    return [row["parts_gib"][part] for part in ("transformer, model's dtype", "transformer, int8", "VAE")]


def vae() -> dict[str, str]:
    decoder, encoder = by_size(["vae"], "decoder"), by_size(["vae"], "encoder")
    convolutions = newest(["vae"], lambda row: (row["size"], row["frames"]), "convolutions")
    ratio: dict[str, Column] = {"ours ÷ modules": lambda row: show(1 / row["modules_by_ours"], 2)}
    memory: dict[str, Column] = {"GiB": fixed("gib", 2), "modules: GiB": fixed("modules_gib", 2)}
    return {
        "decoder_source": source(decoder),
        "vae_goals": goals("vae"),
        "decoder_table": table(
            {"decode, H×W": "size", "12 frames ms": "block_ms", "1 latent": "latent_ms"}
            | {"modules: 12 frames": "modules_block_ms", "modules: 1 latent": "modules_latent_ms"}
            | {"published: 12 frames": "published_ms"}
            | ratio
            | memory
            | {"int8: 12 frames": "int8_block_ms", "int8: 1 latent": "int8_latent_ms", "int8 ÷ ours": "int8_by_ours"}
            | {"int8: GiB": "int8_gib", "int8: PSNR dB, median, worst": "int8_psnr_db"},
            rows_of(decoder),
        ),
        "encoder_table": table(
            {"encode, H×W": "size", "12 frames ms": "ms", "modules": "modules_ms"}
            | ratio
            | memory
            | {"int8": "int8_ms", "int8 ÷ ours": "int8_by_ours", "int8: GiB": "int8_gib"},
            rows_of(encoder),
        ),
        "convolutions_table": table(
            {"H×W": "size", "frames of": "frames", "ms a block": "ms", "TFLOP/s": "tflops"},
            sorted(rows_of(convolutions), key=lambda row: SIZES.index(row["size"])),
        ),
    }


def pictures() -> dict[str, str]:
    error, (first, *_, again) = runs("error")[-1], runs("parity")
    passes, pixels = error["rows"]
    eight = newest(["eight-bits"], lambda row: (row["of"], row["preset"]))
    rows = [
        passes | {"what": f"{passes['where']}: the worst of all passes and layers"},
        {"what": "flow of a denoising pass", "ours": passes["flow_ours"], "baseline": passes["flow_baseline"]},
        pixels | {"what": "pixels of three blocks, beside the modules"},
    ]
    worst = again["rows"][0]
    return {
        "error_source": source([error]),
        "error_worst": show(max(row["worst_by_baseline"] for run in runs("error") for row in run["rows"])),
        "error_table": table(named("what", "ours", "baseline") | {"worst ours ÷ baseline": "worst_by_baseline"}, rows),
        "eight_bits_source": source(eight),
        "eight_bits_table": table(
            named("of", "preset")
            | {"flow int8": "flow_int8", "flow": "flow_ours", "cache int8": "cache_int8", "cache": "cache_ours"}
            | {"PSNR median dB": "psnr_median_db", "worst": "psnr_worst_db", "blocks": "blocks"}
            | {"made again": "fallback_blocks", "shows what was asked: int8, without": "shown_int8_and_without"},
            rows_of(eight),
        ),
        "parity_source": source([first]),
        "parity_software": first["software"],
        "parity_table": table(
            named("what", "latents")
            | {"pixels in 0..1": "pixels", "bytes that differ, by 1": "bytes_that_differ_by_1"},
            first["rows"],
        ),
        "parity_again": f"Again on {stamp(again)} ({again['software']}): latents at most {show(worst['latents'])}, "
        f"pixels {show(worst['pixels'])}.",
    }


def kernels() -> dict[str, str]:
    def operator(row: dict) -> object:
        return None if row["case"].startswith("ring_attention,") else (row["case"], row["backend"])

    found, ceilings = newest(["operators"], operator), runs("operators")[0]["ceilings"]
    run, beside, error = (runs(topic)[-1] for topic in ("attention", "attention-fa4", "attention-error"))
    other = {row["shape"]: row["flash_attention_4_by_ours"] for row in beside["rows"]}
    return {
        "operators_source": source(found),
        "ceiling_gb_s": show(ceilings["gb_s"]),
        "ceiling_tflops": show(ceilings["tflops"]),
        "operators_table": table(
            {"operator, shape": "case", "backend": "backend", "µs (p99)": "us", "GB/s": "gb_s", "TFLOP/s": "tflops"}
            | {"% of ceiling": "of_ceiling_percent", "published order ÷ ours": "published_by_ours"},
            sorted(rows_of(found), key=lambda row: (row["case"], row["backend"])),
        ),
        "attention_source": source([run]),
        "attention_ceiling": show(run["ceilings"]["tflops"]),
        "attention_goals": goals("attention"),
        "fa4_run": stamp(beside),
        "attention_table": table(
            {"queries × keys": "shape", "ours µs (p10, p99)": lambda row: row["ours"]["us"]}
            | {"TFLOP/s": lambda row: row["ours"]["tflops"], "% of ceiling": "of_ceiling_percent"}
            | {"cuDNN": "cudnn", "Triton": "triton", "FlashAttention-2": "flash_attention_2"}
            | {"cuDNN ÷ ours": "cudnn_by_ours", "FlashAttention-4 ÷ ours": lambda row: other[row["shape"]]},
            run["rows"],
        ),
        "attention_error": show(error["rows"][0]["worst"]),
        "attention_error_source": source([error]),
        "sanitizer_source": source(runs("sanitizer")),
        "sanitizer_table": table(
            {"tool": "tool", "operators": "of"} | named("tests", "errors", "hazards"),
            [{"of": "all"} | row for run in runs("sanitizer") for row in run["rows"]],
        ),
    }


def others() -> dict[str, str]:
    plugin, overlap, merged = by_size(["plugin"]), runs("overlap")[-1], runs("merged-pass")[-1]
    delay, server, soak, blocks = (runs(topic)[-1] for topic in ("page", "server-soak", "soak", "endurance"))
    janus, sessions, cluster = runs("janus")[-1], runs("sessions"), runs("cluster")[-1]
    arrival = runs("page-arrival")[-1]
    builds, compiled, install = runs("builds")[-1], runs("compile")[-1], runs("install")[-1]
    training, shown, demo = runs("tinyworld-training")[-1], runs("tinyworld")[-1], runs("demo")
    attributes = ("ground", "count", "motion", "colour", "form", "all")
    steered = runs("tinyworld-control")
    seen, frames, made = (run["rows"][0] for run in (server, soak, blocks))
    return {
        "plugin_source": source(plugin),
        "plugin_table": table(
            {"H×W": "size", "load s": "load_s", "first frames s": "first_frames_s", "frames/s": "fps"}
            | {"call ms": "call_ms", "switch ms": "switch_ms", "peak GiB": "peak_gib"},
            rows_of(plugin),
        ),
        "builds_source": source([builds]),
        "builds_state": builds["state"],
        "builds_equal": builds["notes"][1],
        "builds_table": table(
            {"H×W": "size", "DiT ms: old, new": "dit_ms", "VAE": "vae_ms", "block": "block_ms", "÷": "new_by_old_block"}
            | {"prompt switch, first pixel": "switch_first_pixel_ms", "peak GiB": "peak_gib"}
            | {"spread of a build's runs %": "spread_percent"},
            builds["rows"],
        ),
        "compile_source": source([compiled]),
        "compile_table": table(
            {"480×832": "how", "warm-up s": "warmup_s", "DiT ms": "dit_ms", "block ms": "block_ms"}, compiled["rows"]
        ),
        "overlap_source": source([overlap]),
        "overlap_table": table(
            {"H×W": "size"} | named("transformer_ms", "decoder_ms", "one_after_the_other_ms", "at_once_ms"),
            overlap["rows"],
        ),
        "merged_pass": f"{merged['notes'][0]} ({stamp(merged)})",
        "page_source": source([delay]),
        "page_how": delay["notes"][0][:1].upper() + delay["notes"][0][1:],
        "page_table": table(
            {"H×W": "size", "frame made → decoded ms": "made_to_decoded_ms", "due → decoded": "due_to_decoded_ms"}
            | {"prompt → first new frame at the peer": "prompt_to_first_frame_ms"},
            delay["rows"],
        ),
        "server_soak_source": source([server]),
        "server_soak": table(
            named("messages", "viewers", "killed", "rude_requests", "errors", "frames_of_one_watcher")
            | named("longest_gap_s", "resident_mib_alone", "resident_mib_end", "shutdown_s"),
            [seen],
        ),
        "sessions_source": source(sessions),
        "sessions": table(
            {"H×W": "size", "preset": "preset", "VAE": "vae"}
            | named("sessions", "block_ms")
            | {"share of the GPU": "load", "p99 ms": "p99_ms", "of the worst": "worst_p99_ms", "frames/s": "fps"}
            | {"as promised": "promised", "as alone": "equal"},
            [row for run in sessions for row in run["rows"]],
        ),
        "cluster_source": source([cluster]),
        "cluster": table(
            {"of": "of", "sessions": "sessions", "longest gap before s": "before_s", "after, each": "stood_still_s"},
            cluster["rows"],
        ),
        "janus_source": source([janus]),
        "janus_how": janus["notes"][0],
        "janus": table(named("viewers", "of", "cpu_ms_per_frame", "fps", "packets_per_frame", "by_one"), janus["rows"]),
        "arrival_source": source([arrival]),
        "arrival_how": arrival["notes"][0],
        "arrival": table(
            {"H×W": "size", "preset": "preset", "prompts": "prompts", "the page s": "page_s", "the look s": "look_s"}
            | {"the engine s": "engine_s", "off ms": "off_ms"},
            arrival["rows"],
        ),
        "training_source": source([training]),
        "training_size": training["notes"][1],
        "training_table": table(
            {"what": "what", "options": "options", "steps": "steps", "steps/s": "steps_per_s", "loss": "loss"}
            | {"held-out videos": "held_out"},
            training["rows"],
        ),
        "shown_source": source([shown]),
        "shown_table": table({"what": "what"} | {name: fixed(name, 3) for name in attributes}, shown["rows"]),
        "control_source": source(steered),
        "control_table": table(
            {"on": "device", "what": "what"} | {name: fixed(name, 3) for name in ("overlap", "pixels", *attributes)},
            [{"device": run["device"]} | row for run in steered for row in run["rows"]],
        ),
        "demo_source": source(demo),
        "demo_table": table(
            {"block ms": "block_ms", "of which decoding": "decode_ms", "frames/s": "fps"},
            [row for run in demo for row in run["rows"]],
        ),
        "install_source": source([install]),
        "install_state": install["state"],
        "install_software": install["software"],
        "fresh_table": table({"until": "until", "s": "s"}, of_kind(install, "fresh")),
        "wheels_table": table(
            {"wheel": "wheel", "MB": "mb", "built s": "built_s", "Python": "python", "beside": "beside"}
            | {"installed s": "installed_s", "used s": "used_s"},
            of_kind(install, "wheels"),
        ),
        "endurance_source": source([blocks]),
        "endurance": f"{made['blocks']} blocks of a small model in {made['seconds']} s; memory {made['memory']}.",
        "soak_source": source([soak]),
        "soak": f"{frames['frames']} frames while three threads switch prompts and presets, reset and ask for "
        f"statistics: {frames['errors']} errors; resident memory at least, at most and at the end "
        f"{show(frames['resident_mib_least_most_end'])} MiB.",
    }


if __name__ == "__main__":
    REPORT.write_text(report())
