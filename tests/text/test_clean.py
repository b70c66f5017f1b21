"""Prompt cleaning against the rule's own words (docs/model.md 6.1)."""

import pytest

from longlive_optimized.text.clean import clean


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("A Cat, sleeping!", "A Cat, sleeping!"),  # neither lower case nor stripped of punctuation
        ("  a \t b\n\nc\u3000d\xa0e ", "a b c d e"),
        ("fish &amp; chips", "fish & chips"),
        ("fish &amp;amp; chips", "fish & chips"),  # entities are resolved twice
        ("<b> &amp;amp;amp; c", "<b> &amp; c"),  # ... and not a third time, where ftfy leaves them alone
        ("cafÃ© noir", "café noir"),  # mojibake
        ("“quoted” it’s", '"quoted" it\'s'),
        ("&nbsp; a &nbsp;", "a"),
        ("日本の海", "日本の海"),
    ],
)
def test_cleaning(prompt, wanted):
    assert clean(prompt) == wanted


@pytest.mark.parametrize("prompt", ["", "   \n", "&nbsp;", "\u3000"])
def test_nothing_left(prompt):
    with pytest.raises(ValueError, match="prompt must hold some text"):
        clean(prompt)


@pytest.mark.parametrize("prompt", [None, 3, b"a cat", ["a cat"]])
def test_not_a_string(prompt):
    with pytest.raises(TypeError, match="prompt must be a string"):
        clean(prompt)
