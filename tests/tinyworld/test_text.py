"""The tokenizer against the text room's, and the plain umT5 against transformers'."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive_optimized.text.clean import clean
from longlive_optimized.text.encoder import TextEncoder, checkpoint_shapes, config_of
from longlive_optimized.text.tokenizer import Tokenizer
from longlive_optimized.tinyworld import vocabulary
from longlive_optimized.tinyworld.umt5 import TextConfig, TextNetwork
from longlive_optimized.tinyworld.vocabulary import UNKNOWN, batch_of_ids, ids, known_to, pieces, write_tokenizer
from longlive_optimized.tinyworld.world import COLOURS, FORMS, GROUNDS, Known, caption, known_by, sample_scene, words

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


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A Red CIRCLE, moves.", "a red circle , moves ."),
        ("foxes leap", "fox ? leap"),
        ("über ñ 狐", "? ? ?"),
        ("circle!!! , x,y", "circle ? ? , ? , ?"),
        ("redcircle", "red ?"),
    ],
)
def test_a_word_is_read_by_the_longest_known_one_that_it_begins_with(tokenizer, text, pieces):
    known = {"?": UNKNOWN} | {piece.removeprefix("\u2581"): i for i, piece in enumerate(vocabulary.pieces())}
    assert tokenizer(text) == ids(text) == [*(known[piece] for piece in pieces.split()), 1]


STRANGE = st.text("abcdefnorgu.,!é狐-", min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(words()) | STRANGE, min_size=1, max_size=8))
def test_any_text_has_the_same_ids(tokenizer, parts):
    for text in (" ".join(parts), "".join(parts)):
        assert tokenizer(text) == ids(clean(text)), text


def test_what_a_model_knows_is_read_off_its_words():
    assert known_by(set(words())) == Known() == (tuple(COLOURS), tuple(GROUNDS), FORMS)
    assert known_by({"red", "blue", "sea", "disc", "circle", "cross"}) == (("red", "blue"), (), ("circle",))
    assert {"red", "blue"} < {*known_to("tiny").colours} and "circle" in known_to("tiny").forms


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
