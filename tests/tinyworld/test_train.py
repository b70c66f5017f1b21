"""The stages, very small: they learn, stop, go on, and leave a checkpoint that the engine runs as they did."""

import dataclasses
import json
import warnings

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.noise import BlockNoise
from longlive_optimized.engine.sampler import make_schedule
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.tinyworld import networks, stage_flow, stage_vae, train
from longlive_optimized.tinyworld.autoencode import decode, denormalise, encode, normalise
from longlive_optimized.tinyworld.checkpoint import half, load, named, save
from longlive_optimized.tinyworld.evaluate import Evaluation
from longlive_optimized.tinyworld.export import export
from longlive_optimized.tinyworld.networks import new_text, new_transformer, new_vae
from longlive_optimized.tinyworld.pictures import contact_sheet, write_png
from longlive_optimized.tinyworld.sample import Streams
from longlive_optimized.tinyworld.vocabulary import batch_of_ids
from longlive_optimized.vae.autoencoder import to_uint8
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.weights.load import load_vae
from longlive_optimized.weights.locate import locate

SIZE = networks._size(
    ModelConfig(dim=32, ffn_dim=32, freq_dim=16, num_heads=1, num_layers=2, text_len=32, text_dim=16),
    VaeConfig(base=4, multipliers=(1, 1, 1, 1)),
    (32, 32),
    (32, 48),
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(networks.SIZES, "test", SIZE)
    monkeypatch.setattr(stage_vae, "_LATENTS", (2, 3))
    monkeypatch.setattr(stage_flow.FlowStage, "clips", 12)
    monkeypatch.setattr(stage_flow, "_GUESSES_FROM", 0)
    monkeypatch.setattr(stage_flow, "_OPENINGS", 2)
    monkeypatch.setattr(train, "_WARM", 1)
    monkeypatch.setattr(train, "_LOG_EVERY", 0)


def run(stage, out, steps, *more):
    common = ["--size", "test", "--device", "cpu", "--samples", "2"]
    train.main(["--stage", stage, "--out", str(out), "--steps", str(steps), *common, *more])
    log = out / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return [row for row in rows if row["stage"] == stage]


def trained_at_random(out, size=SIZE):
    """Stages that are done, with weights drawn away from where training starts."""
    torch.manual_seed(0)
    parts = {"vae": new_vae(size, 0), "model": new_transformer(size, 0), "text": new_text(size, 0)}
    for part in parts.values():
        for weight in part.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    for stage, names in {"vae": ["vae"], "flow": ["model", "text"]}.items():
        content = {"step": 1, "done": True, "average": half(named({name: parts[name] for name in names}))}
        save(out / f"{stage}.pt", content)


def test_the_vae_learns_and_its_latents_are_normalised(tmp_path):
    rows = run("vae", tmp_path, 40, "--batch", "4", "--rate", "1e-2")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8]), losses
    assert (tmp_path / "vae.png").read_bytes().startswith(b"\x89PNG")
    assert {"psnr", "ground", "all"} <= rows[-1].keys()
    vae = new_vae(SIZE, 1)
    load(tmp_path / "vae.pt", {"vae": vae})
    stage = stage_vae.VaeStage(SIZE, tmp_path, CPU, torch.float32, 0)
    stage.begin(3)
    with torch.no_grad():
        latents = normalise(encode(vae, stage._clips(24, 3))[0])
    assert latents.mean((0, 1, 3, 4)).abs().max() < 0.5
    assert latents.std((0, 1, 3, 4)).max() < 1.5 and latents.std() > 0.2


def test_a_vae_that_takes_anothers_place_is_held_to_its_latents(tmp_path):
    wide = dataclasses.replace(SIZE, vae=VaeConfig(base=4, multipliers=(1, 2, 2, 2)))
    trained_at_random(tmp_path, wide)
    export(tmp_path, tmp_path / "model", wide)
    rows = run("vae", tmp_path / "narrow", 60, "--from", str(tmp_path / "model"), "--batch", "4", "--rate", "1e-2")
    apart = [row["latents"] for row in rows if "latents" in row]
    assert sum(apart[-8:]) < 0.5 * sum(apart[:8]), apart
    narrow, teacher = new_vae(SIZE, 1), load_vae(locate(tmp_path / "model"), CPU, torch.float32)
    load(tmp_path / "narrow" / "vae.pt", {"vae": narrow})
    stage = stage_vae.VaeStage(SIZE, tmp_path, CPU, torch.float32, 0)
    stage.begin(3)
    with torch.no_grad():
        frames = stage._clips(24, 3)
        ours, theirs = (normalise(encode(vae, frames)[0]) for vae in (narrow, teacher))
    assert (ours - theirs).square().mean() < 2 * sum(apart[-8:]) / 8
    for _ in range(2):  # then the flow, from the model's; done is done
        rows = run("flow", tmp_path / "narrow", 1, "--from", str(tmp_path / "model"), "--batch", "1")
        assert [row["step"] for row in rows] == [1, 1]
    assert [path.name for path in (tmp_path / "narrow").glob("*.before")] == ["flow.before"]


def test_a_clip_can_be_learnt_by_heart(tmp_path, monkeypatch):
    trained_at_random(tmp_path)
    monkeypatch.setattr(stage_flow.FlowStage, "rate", 1e-2)
    (tmp_path / "flow.pt").unlink()
    rows = run("flow", tmp_path, 1, "--batch", "1")
    stage = stage_flow.FlowStage(SIZE, tmp_path, CPU, torch.float32, 0)
    optimiser, losses = torch.optim.Adam(named(stage.parts).values(), 1e-2), []
    stage.begin(0)
    for _ in range(40):  # the same draw again and again
        stage.random.seed(0), torch.manual_seed(0)
        loss = stage.losses(2, 0.1)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses
    assert {"motion", "motion after a switch"} <= rows[-1].keys()


def test_the_flow_runs_to_the_end_and_the_engine_takes_the_result(tmp_path):
    trained_at_random(tmp_path)
    (tmp_path / "flow.pt").unlink()
    before = [w.clone() for w in new_transformer(SIZE, 0).parameters()]
    rows = run("flow", tmp_path, 20, "--batch", "2")
    assert all(torch.isfinite(torch.tensor([v for v in row.values() if isinstance(v, float)])).all() for row in rows)
    assert rows[-1]["step"] == 20
    assert all("first" in row for row in rows[:5]) and not all("first" in row for row in rows)
    model = new_transformer(SIZE, 0)
    load(tmp_path / "flow.pt", {"model": model})
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    export(tmp_path, tmp_path / "model", SIZE)
    config = OptimizationConfig(height=32, width=32)
    evaluation = Evaluation(LongLiveEngine(tmp_path / "model", config, "cpu"))
    assert 0 <= evaluation.adherence(1, 1.0)["all"] <= 1
    assert evaluation.switches(1).keys() == evaluation.switches(1, recache=False).keys()
    [minute] = evaluation.long(2, 0.05, last=1.0, precision="int8").values()
    assert 0 < minute["sharpness"] < minute["contrast"] < 1 and minute["mean +-"] > 0


def test_a_stage_goes_on_where_it_stopped(tmp_path):
    trained_at_random(tmp_path)
    (tmp_path / "flow.pt").unlink()
    stage = flow_stage(tmp_path)
    first = train.Trainer(stage, tmp_path, 0, minutes=1.0)
    for _ in range(3):
        first.train_step(2)
    first.seconds = 15.0
    first.save()
    again = train.Trainer(flow_stage(tmp_path, seed=1), tmp_path, 0, minutes=1.0)
    assert again.step == 3 and again.progress == 0.25 and not again.done
    assert torch.equal(again.weights.vector, first.weights.vector)
    for ours, theirs in zip(again.stage.model.parameters(), stage.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(again.average, first.average, rtol=1e-3, atol=1e-4)
    for a, b in zip(first.optimiser.state.values(), again.optimiser.state.values(), strict=True):
        assert b["step"] == 3
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(a[key], b[key], rtol=1e-2, atol=0)
    again.train_step(2)
    assert again.step == 4


def flow_stage(out, seed=0, dtype=torch.float32):
    stage = stage_flow.FlowStage(SIZE, out, CPU, dtype, seed)
    stage.begin(0)
    return stage


def test_a_call_that_runs_out_of_time_is_gone_on_with(tmp_path):
    trained_at_random(tmp_path)
    (tmp_path / "flow.pt").unlink()
    rows = run("flow", tmp_path, 4, "--batch", "2", "--call-minutes", "0")
    assert not rows and not torch.load(tmp_path / "flow.pt")["done"]
    assert run("flow", tmp_path, 4, "--batch", "2")[-1]["step"] == 4
    left = torch.load(tmp_path / "flow.pt")["average"]["model.head.bias"]
    assert run("flow", tmp_path, 4, "--batch", "2")[-1]["step"] == 4  # done is done
    assert torch.equal(torch.load(tmp_path / "flow.pt")["average"]["model.head.bias"], left)
    run("flow", tmp_path, 2, "--batch", "2", "--again")
    assert not torch.equal(torch.load(tmp_path / "flow.pt")["average"]["model.head.bias"], left)


def test_a_stage_that_is_trained_again_knows_it_when_it_is_gone_on_with(tmp_path, monkeypatch):
    trained_at_random(tmp_path)
    told, begin = [], stage_flow.FlowStage.begin

    def noted(stage, seed, again):
        told.append(again)
        begin(stage, seed, again)

    monkeypatch.setattr(stage_flow.FlowStage, "begin", noted)
    run("flow", tmp_path, 1, "--batch", "2", "--again", "--call-minutes", "0")
    run("flow", tmp_path, 1, "--batch", "2")
    assert told == [True, True]


def test_a_gradient_that_is_no_number_changes_nothing(tmp_path, capsys):
    trained_at_random(tmp_path)
    (tmp_path / "flow.pt").unlink()
    trainer = train.Trainer(flow_stage(tmp_path), tmp_path, 0, minutes=1.0, steps=6)
    losses, bad = trainer.stage.losses, []

    def spoilt(batch, progress):
        bad.append(len(bad) in (2, 3))
        made = losses(batch, progress)
        return {name: value * float("nan") for name, value in made.items()} if bad[-1] else made

    trainer.stage.losses = spoilt
    trainer.run(float("inf"), 2, 1)
    assert trainer.done and sum(bad) == 2
    assert all(weight.isfinite().all() for weight in trainer.stage.model.parameters())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows[:-1]] == [0, 0, 1, 1, 0, 0]
    assert capsys.readouterr().out.count("on from the average") == 2


def test_half_precision_trains_copies_of_full_weights(tmp_path):
    trained_at_random(tmp_path)
    (tmp_path / "flow.pt").unlink()
    trainer = train.Trainer(flow_stage(tmp_path, dtype=torch.bfloat16), tmp_path, 0, minutes=1.0, steps=10)
    for _ in range(2):
        losses = trainer.train_step(2)
    assert losses["loss"].isfinite() and not losses["skipped"]
    vector = trainer.weights.vector.detach()
    assert vector.dtype == torch.float32 and not torch.equal(vector, vector.bfloat16().float())
    for name, view in trainer.weights.views(vector).items():
        part, _, key = name.partition(".")
        assert torch.equal(trainer.stage.parts[part].get_parameter(key), view.bfloat16()), name


def test_pictures(tmp_path):
    import av

    videos = torch.randint(0, 256, (2, 9, 32, 48, 3), dtype=torch.uint8)
    sheet = contact_sheet(list(videos), columns=3)
    assert sheet.shape == (2 * 34, 3 * 50, 3) and torch.equal(sheet[34:66, 50:98], videos[1, 4])
    write_png(tmp_path / "sheet.png", sheet)
    with av.open(tmp_path / "sheet.png") as file:
        read = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert torch.equal(torch.from_numpy(read), sheet)


def test_stages_come_in_order(tmp_path):
    with pytest.raises(FileNotFoundError, match="train the stage 'vae' first"):
        stage_flow.FlowStage(SIZE, tmp_path, CPU, torch.float32, 0)
    save(tmp_path / "vae.pt", {"step": 7, "done": False})
    with pytest.raises(ValueError, match="not done yet, at step 7"):
        stage_flow.FlowStage(SIZE, tmp_path, CPU, torch.float32, 0)


def test_the_engine_makes_of_the_export_what_training_would(tmp_path):
    """Prompt to pixels, over a switch: the engine on the exported files, and the training code on the trained ones."""
    trained_at_random(tmp_path)
    export(tmp_path, tmp_path / "model", SIZE)
    with pytest.raises(FileExistsError, match="folder"):
        export(tmp_path, tmp_path / "model", SIZE)
    config = OptimizationConfig(height=32, width=48)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = LongLiveEngine(tmp_path / "model", config, "cpu")
    texts = ["a red circle moves left over a green field"] * 5 + ["a white cross rests on a black night."] * 2
    frames = torch.cat([engine.generate_block(BlockRequest(text)) for text in texts])

    vae, model, text = new_vae(SIZE, 1), new_transformer(SIZE, 1), new_text(SIZE, 1)
    load(tmp_path / "vae.pt", {"vae": vae})
    load(tmp_path / "flow.pt", {"model": model, "text": text})
    with torch.no_grad():
        first, second = (text(batch_of_ids([t]), SIZE.model.text_len) for t in (texts[0], texts[-1]))
        streams, made = Streams(model, first), []
        noises = BlockNoise(config.seed, torch.empty(16, 4, 6))
        schedule = make_schedule(config.denoising_steps, "longlive")
        for block in range(len(texts)):
            if block == 5:
                streams.switch(second)
            draws = noises.block(3 * block, 3)
            made.append(streams.denoise([next(draws)[None] for _ in schedule], schedule))
            streams.keep(made[-1])
        latents = torch.cat(made, 1)
        torch.testing.assert_close(engine.stream.history, latents[0], rtol=1e-3, atol=1e-3)
        pictures = to_uint8(decode(vae, denormalise(latents)))[0].permute(1, 2, 3, 0)
    assert (pictures.int() - frames.int()).abs().max() <= 2
    assert frames.float().std() > 5
    total = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*") if path.is_file())
    assert total < 1e6


def test_the_shipped_size_is_small_enough():
    shipped = new_vae, new_transformer, new_text
    parameters = sum(p.numel() for make in shipped for p in make(networks.SIZES["tiny"], 0).parameters())
    assert 2 * parameters < 11.5e6
    assert networks.SIZES["tiny"].model.head_dim == 128
