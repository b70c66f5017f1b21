"""The kernel on the GPU: correctness stage by stage, then the decoder's layers beside the library's convolution.

python tests/native/conv/gpu.py LIBRARY check|real|time [variant]
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from calls import Build
from cases import check, check_pixels, make, make_pixels, staged

from longlive_optimized.kernels.bench.causal_conv import arguments, decoder, library
from longlive_optimized.kernels.causal_conv import Kind, causal_conv, from_groups, pack  # noqa: F401

torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def applies(variant, kind, co):
    return variant == 0 or (kind == Kind.CAUSAL and co % 192 == 0)


def check_stages(path, variant):
    bad = 0
    for stage, name, case in staged():
        if not applies(variant, case["kind"], case["co"]):
            continue
        print("   ", stage, name, flush=True)  # what runs when the device gives up
        args = make(**case, device="cuda", seed=stage)
        errors = check(Build(path, variant), args)
        torch.cuda.synchronize()
        again = {n: args[n].clone() for n in ("raw", "act") if args[n] is not None and args[n] is not args["residual"]}
        for _ in range(20):  # a result that changes is a race
            if args["raw"] is None or args["raw"] is not args["residual"]:
                Build(path, variant)(**args)
        moved = [n for n, t in again.items() if not torch.equal(t.view(torch.int16), args[n].view(torch.int16))]
        ok = all(v <= 1 for v in errors.values()) and not moved
        bad += not ok
        print("ok " if ok else "BAD", stage, name, {k: round(v, 2) for k, v in errors.items()}, moved or "", flush=True)
    if variant == 0:
        for as_bytes in (False, True):
            errors = check_pixels(Build(path).pixels, make_pixels((40, 72), 96, 3, as_bytes, device="cuda"))
            ok = all(v <= 1 for v in errors.values())
            bad += not ok
            print("ok " if ok else "BAD", 9, "pixels", as_bytes, errors, flush=True)
    return bad


def check_real(path, variant):
    """Full-size frames, the bottom-right corner against a small call's: the same pixels, away from the cut."""
    bad = 0
    for layer in decoder(60, 104):
        if not applies(variant, layer.kind, layer.channels[1]):
            continue
        args = list(arguments(layer, "cuda"))
        run = Build(path, variant)
        names = "x frames weight bias kind residual residual_frames raw raw_frames act act_frames gain".split()
        call = dict(zip(names, args, strict=True))
        run(**call)
        torch.cuda.synchronize()
        side, scale = 40, 2 if layer.kind == Kind.UP else 1
        cut = lambda t, n=side: None if t is None else t[:, :, -n:, -n:].contiguous()  # noqa: E731
        small = call | {"x": cut(call["x"]), "residual": cut(call["residual"])}
        for n in ("raw", "act"):
            if call[n] is not None:
                small[n] = torch.empty_like(call[n][:, :, : scale * side, : scale * side])
                small[n] = small[n].contiguous()
        causal_conv.reference(**small)
        for n in ("raw", "act"):
            if call[n] is not None:
                inner = scale * (side - 2)
                got, want = (t[:, :, -inner:, -inner:].float() for t in (call[n], small[n]))
                error = ((got - want).norm() / want.norm()).item()
                ok = error < 4e-3
                bad += not ok
                print("ok " if ok else "BAD", layer.name, layer.size, n, f"{error:.1e}", flush=True)
    return bad


def timed(fn, repeats):
    for _ in range(2):
        fn()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        fn()
        event.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False))
    return times[len(times) // 2] * 1e3


def time_layers(path, variants):
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    print(f"TIME ceiling: {2 * 8192**3 / timed(lambda: a @ b, 20) / 1e6:.0f} TFLOP/s", flush=True)
    totals = {}
    for size in ((60, 104), (40, 72)):
        for layer in decoder(*size):
            args = arguments(layer, "cuda")
            row = {}
            x, w, padding = library(layer)
            row["library"] = timed(lambda x=x, w=w, p=padding: torch.nn.functional.conv3d(x, w, padding=p), 8)
            del x, w
            for v in variants:
                if applies(v, layer.kind, layer.channels[1]):
                    run = Build(path, v)
                    row[v] = timed(lambda run=run, args=args: run(*args), 20)  # the weights' order does not matter here
            text = "  ".join(f"{k}: {us:8.1f} us {layer.flops / us / 1e6:5.0f}" for k, us in row.items())
            print(f"TIME {size[0] * 8}x{size[1] * 8} {layer.name:28s} x{layer.times} {text}", flush=True)
            for k, us in row.items():
                totals[size, k] = totals.get((size, k), 0) + us * layer.times
        pixels = make_pixels((8 * size[0], 8 * size[1]), 96, 12, True, device="cuda")
        us = timed(lambda pixels=pixels: Build(path).pixels(*pixels), 20)
        print(f"TIME {size[0] * 8}x{size[1] * 8} conv_pixels {us:.1f} us", flush=True)
        totals[size, 0] += us
    for (size, k), us in totals.items():
        print(f"TIME total {size[0] * 8}x{size[1] * 8} {k}: {us / 1e3:.2f} ms", flush=True)


def main(path, what, variant="0"):
    if what == "check":
        return check_stages(path, int(variant))
    if what == "real":
        return check_real(path, int(variant))
    return time_layers(path, [int(v) for v in variant.split(",")])


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
