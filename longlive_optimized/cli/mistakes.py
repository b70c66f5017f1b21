"""A user's mistake, told in the words of the command line: options, not the fields behind them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

_SAME = "bitrate codec device height host keep_text_int8 low_memory port preset prompt record_seconds seed text_device"
_SAME += " text_precision text_residence token vae_device width"
_OPTIONS = {name: "--" + name.replace("_", "-") for name in _SAME.split()} | {
    "denoising_steps": "--steps",
    "directory": "DIRECTORY",
    "local_attn_size": "--window",
    "memory_limit_gib": "--memory-limit",
    "ice_addresses": "--ice-address",
    "max_viewers": "--viewers",
    "model_path": "--model",
    "names": "OP",
    "origins": "--origin",
    "vae_type": "--vae",
}
_SETTINGS = {
    "force=True": "--force",
    "low_memory=True": "--low-memory",
    "memory_limit_gib=": "--memory-limit ",
    "text_precision='auto'": "--text-precision auto",
    "text_residence='auto'": "--text-residence auto",
    "preset 'turbo'": "--preset turbo",
    "a token of": "a --token of",
}
_FORMS = {"--origin": "https://HOST[:PORT]", "--ice-address": "an IP address"}
_SECRET = ("--token",)
_IN_A_STORY = "--story: "
_NAMED = re.compile(rf"^({'|'.join(_OPTIONS)})\b|\b({'|'.join(_OPTIONS)})\b(?= must )")


def told(error: BaseException) -> str | None:
    """One line about a mistake, or None for an error that is not the user's."""
    from pydantic import ValidationError

    torch = sys.modules.get("torch")  # whoever raised its errors has loaded it
    if torch and isinstance(error, torch.OutOfMemoryError):
        return f"the GPU is out of memory: close other programs, or take a smaller size or window. {error}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return "memory is short: close other programs, or take a smaller size or window"
    if isinstance(error, ValidationError):
        return "; ".join(_fault(found) for found in error.errors())
    if isinstance(error, ValueError | OSError | NotImplementedError):
        return _named(str(error))
    return None


def _fault(found: Mapping) -> str:
    text = found["msg"].removeprefix("Value error, ")
    if not found["loc"]:
        return _named(text)
    name = str(found["loc"][0])
    option = _OPTIONS.get(name, name)
    if text.startswith(name):
        return _named(text)
    text = f"must be {_FORMS[option]}" if option in _FORMS else re.sub(r"^\w+ should", "must", text)
    return f"{option} {text}" if option in _SECRET else f"{option} {text}, got {found['input']!r}"


def _named(text: str) -> str:
    if text.startswith(_IN_A_STORY):  # its fields are no options
        return text
    text = _NAMED.sub(lambda name: _OPTIONS[name[0]], text)
    for words, option in _SETTINGS.items():
        text = text.replace(words, option)
    return text
