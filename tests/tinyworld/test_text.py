"""The tokenizer against the text room's, and the plain umT5 against transformers'."""

from random import Random

import pytest
import torch

from longlive_optimized.text.encoder import TextEncoder, checkpoint_shapes, config_of
from longlive_optimized.text.tokenizer import Tokenizer
from longlive_optimized.tinyworld.umt5 import TextConfig, TextNetwork
from longlive_optimized.tinyworld.vocabulary import batch_of_ids, ids, pieces, write_tokenizer
from longlive_optimized.tinyworld.world import caption, sample_scene

TEXT_LEN = 48


def captions(count, seed=0):
    random = Random(seed)
    return [caption(sample_scene(random, held_out=bool(i % 2)), random) for i in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "umt5-xxl"
    write_tokenizer(folder, TEXT_LEN)
    return Tokenizer(folder, TEXT_LEN)


def test_ids_for_training_are_the_tokenizer_s(tokenizer):
    assert tokenizer.vocabulary == len(pieces()) == len(set(pieces()))
    for text in captions(500):
        assert tokenizer(text) == ids(text)
        assert len(ids(text)) <= TEXT_LEN // 2  # every word is one piece


def test_any_text_has_ids(tokenizer):
    said = tokenizer("A Red CIRCLE, and a blue square move left over a green field.")
    assert said == ids("a red circle, and a blue square move left over a green field.")
    for text in ("A fox leaps 3 times", "über ñ 狐", "a-b/c", "redcircle"):
        assert 2 not in tokenizer(text), text  # <unk>


def test_batches_are_padded():
    texts = ["a red circle rests on a green field", "a red circle rests on a green field."]
    batch = batch_of_ids(texts)
    assert batch.shape == (2, 10) and batch[0].tolist() == [*ids(texts[0]), 0] and batch[1].tolist() == ids(texts[1])


@pytest.mark.parametrize("heads", [1, 4])
def test_the_network_is_umt5(tokenizer, heads):
    torch.manual_seed(0)
    network = TextNetwork(TextConfig(len(pieces()), dim=32, ffn_dim=48, heads=heads, layers=3)).double()
    for weight in network.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    state = network.state_dict()
    wanted = checkpoint_shapes(config_of({key: tensor.shape for key, tensor in state.items()}))
    assert {key: tensor.shape for key, tensor in state.items()} == wanted
    texts = [*captions(5), "a red circle " * 15]  # of unlike lengths, and far enough for the logarithmic buckets
    ours = network(batch_of_ids(texts), TEXT_LEN)
    theirs = TextEncoder(state, tokenizer).encode(texts)
    # transformers takes the mean square in float32 even here.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    assert theirs.std() > 0.3 and (ours[0, len(ids(texts[0])) :] == 0).all()
