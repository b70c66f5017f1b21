"""What tables and lists of documents say, read for comparison with the code."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable

from .markdown import SPAN, Unit

_WORDS = {"none": None, "true": True, "false": False, "off": False}


def value(text: str) -> object:
    """A value as documents write it: none, true, 1000, 750 (a tuple), 0.8, `a word`."""
    text = text.strip().strip("`")
    if text in _WORDS:
        return _WORDS[text]
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def names(text: str) -> list[str]:
    """What stands between backquotes."""
    return [span for _, span in SPAN.findall(text)]


def body(units: Iterable[Unit], first: str) -> list[list[str]]:
    """The rows of tables whose first column is called ``first``."""
    return [unit.cells for unit in units if unit.table == first]


def with_defaults(text: str) -> dict[str, object]:
    """``a`` (1), ``b`` (true): names with what stands in parentheses behind them."""
    return {name: value(given) for name, given in re.findall(r"`(\w+)` \(([^)]+)\)", text)}


def same_signature(said: str, function: Callable, method: bool = True) -> None:
    """``name(a, b=1, **rest)`` as documents write it: names in the function's order, and its defaults."""
    call = ast.parse(re.sub(r"\*\*\w+", "", said).replace(", )", ")"), mode="eval").body
    assert isinstance(call, ast.Call), said
    parameters = list(inspect.signature(function).parameters.values())[1 if method else 0 :]
    plain = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    positional = [a.id for a in call.args if isinstance(a, ast.Name)]
    keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    wanted = [*positional, *keywords]
    assert [p.name for p in plain][: len(wanted)] == wanted, f"{said}: the code has {[p.name for p in plain]}"
    for parameter in plain[: len(wanted)]:
        default = keywords.get(parameter.name, inspect.Parameter.empty)
        assert parameter.default == default, f"{said}: the code has {parameter}"
    if "**" in said:
        assert any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters), f"{said}: no keywords are taken"
