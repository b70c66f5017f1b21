"""Prompt cleaning, as the model was trained with (docs/model.md 6.1, mode "whitespace")."""

from __future__ import annotations

import html
import re

import ftfy


def clean(prompt: str) -> str:
    """Repair mojibake, resolve HTML entities twice, turn every whitespace run into one space, strip.

    Case and punctuation stay. Raises TypeError for anything but a string, ValueError where nothing is left.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"prompt must be a string, got {type(prompt).__name__}")
    text = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    text = re.sub(r"\s+", " ", text).strip()
    if not text:
        raise ValueError("prompt must hold some text, got nothing but white space")
    return text
