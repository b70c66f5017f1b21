"""README's table of cards is what its program writes; what is expected of a card follows from what an H200 does."""

import pytest

from longlive_optimized.engine.memory_shares import GIB
from measure.requirements import BEST, PRESETS, README, cards, fits, frames, measured, peak, placed, plan_on
from measure.requirements import runs as records

KNOWN = cards()
SHEET = KNOWN["h200"]
BY_NAME = {card["name"]: card for card in KNOWN["cards"]}


def test_the_readme_is_what_the_program_writes():
    assert README.read_text() == placed(README.read_text()), "run python tests/measure/requirements.py"


@pytest.mark.parametrize("row", measured(), ids=lambda row: row["kernels"])
def test_an_h200_is_expected_to_do_what_was_measured(row):
    card = SHEET | {"kernels": row["kernels"].lower()}
    for preset in PRESETS:
        if preset in row:
            low, high = frames(card, preset, KNOWN)
            assert low == pytest.approx(float(row[preset]), rel=0.08) and low <= high


@pytest.mark.parametrize("card", KNOWN["cards"], ids=BY_NAME)
def test_a_card_twice_as_fast_makes_twice_the_frames(card):
    twice = card | {name: 2 * card[name] for name in SHEET}
    for preset in PRESETS:
        low, high = frames(card, preset, KNOWN)
        assert frames(twice, preset, KNOWN) == pytest.approx((2 * low, 2 * high))
        assert low == high if card["kernels"] == "cuda" else low < high < 4 * low


def test_peaks():
    """By hand: half of attention's products at 600 TOP/s, half at 300, together at 400."""
    card = {"bf16": 150, "fp16": 300, "int8": 600, "gb_s": 1000}
    assert peak(card, "attention_int8") == pytest.approx(400) and peak(card, "attention") == 150
    assert peak(card, "product_int8") == peak(card, "convolution_96_int8") == 600 and peak(card, "copy") == 1000
    assert all(0 < rate < peak(SHEET, name) for of in KNOWN["h200_kernels"].values() for name, rate in of.items())
    assert BEST < 1


def test_rates_on_an_h200_are_those_that_were_measured():
    triton = KNOWN["h200_kernels"]["triton"]
    products = records("products-triton")[-1]["rows"]
    [qkv] = (x for x in products if "4680×1536×4608" in x["case"] and x["kernel"] == "triton")
    [bf16] = (x for x in products if "4680×1536×4608" in x["case"] and x["kernel"].startswith("cuBLAS"))
    assert (triton["product_int8"], triton["product"]) == (qkv["tflops"], bf16["tflops"])
    calls = [x for x in records("vae-triton")[-1]["rows"] if x["table"] == "calls" and "now" in x["kernels"]]
    for name, begins in {
        "convolution": "causal_conv CAUSAL 192->192 3x240x416 act",
        "convolution_96": "causal_conv CAUSAL 96->96 3x480x832 act",
        "convolution_int8": "causal_conv_int8 CAUSAL 192->192 3x240x416 act",
        "convolution_96_int8": "causal_conv_int8 CAUSAL 96->96 3x480x832 act",
    }.items():
        assert triton[name] in [x["tops"] for x in calls if x["call"].startswith(begins)], name
    attention = 4 * 4680 * 18720 * 1536  # docs/attention.md: 1216 and 811 µs
    assert triton["attention"] == pytest.approx(attention / 1216e-6 / 1e12, rel=2e-3)
    assert triton["attention_int8"] == pytest.approx(attention / 811e-6 / 1e12, rel=2e-3)


def test_what_fits_is_less_than_there_is():
    for gib in {card["memory_gib"] for card in KNOWN["cards"]}:
        plan = plan_on(gib - max(0.5, gib / 25))
        assert plan.fits and plan.peak < gib * GIB
    assert fits(80).startswith("everything on the GPU") and fits(12).count(",") == 2
    assert fits(6).startswith("not: it takes ")


def test_sheets_agree_with_themselves():
    assert len(BY_NAME) == len(KNOWN["cards"]) and "data sheets" in KNOWN["source"]
    assert all(card["int8"] >= 1.9 * card["bf16"] and card["fp16"] >= card["bf16"] for card in KNOWN["cards"])
