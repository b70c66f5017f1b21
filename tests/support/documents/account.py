"""What becomes of each piece of the documents: run, tried as a claim, not run for a reason, or overlooked."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .claims import Claim
from .markdown import Unit, parse, read
from .place import ROOT

DOCUMENTS = (
    "README.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
    "docs/measurements/README.md",
)
EXAMPLES = tuple(sorted(f"docs/examples/{p.name}" for p in (ROOT / "docs/examples").glob("*.py")))
PROGRAMS = frozenset(
    "longlive-optimized bench doctor pip python pytest hf ./setup_env.sh .ci/run . export ruff clang-format "
    "basedpyright pre-commit daydream-scope compute-sanitizer".split()
)
_ALTERNATIVES = re.compile(r"\S*\w\|\w\S*")
_SETTING = re.compile(r"^(?:[A-Z_]+=\S+ )*")


class NotRun(NamedTuple):
    """What is not run, and why. ``what`` is a pattern for a whole command or the beginning of a passage; ``*`` stands
    for any document or section.
    """

    document: str
    section: str
    what: str
    reason: str

    def fits(self, unit: Unit, text: str, whole: bool) -> bool:
        if self.document not in ("*", unit.document) or self.section not in ("*", unit.section):
            return False
        return bool(re.fullmatch(self.what, text) if whole else re.match(self.what, text))


@dataclass
class Account:
    """commands, by their text: where they stand. unrun: what is not run, by reason. names_only: passages of which no
    more than the names between backquotes is tried. overlooked: what nobody has looked at, which is a failure, as are
    unused: entries of the tables whose command or passage is gone.
    """

    commands: dict[str, list[Unit]] = field(default_factory=dict)
    unrun: dict[str, list[str]] = field(default_factory=dict)
    names_only: list[Unit] = field(default_factory=list)
    overlooked: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def documents() -> list[Unit]:
    """The units of all documents, and of the examples' docstrings."""
    units = [unit for name in DOCUMENTS for unit in read(ROOT / name, name)]
    for name in EXAMPLES:
        units += parse(ast.get_docstring(ast.parse((ROOT / name).read_text())) or "", name)
    return units


def commands(unit: Unit) -> list[str]:
    """The commands of a unit: a shell line, spans that begin with a program, a block of Python (by its first line)."""
    if unit.kind == "python":
        return [f"python: {unit.text.splitlines()[0]}"]
    texts = [unit.command] if unit.kind == "shell" else unit.spans
    return [one for text in texts if _is_command(text, unit.kind == "shell") for one in _expanded(text)]


def _is_command(text: str, line: bool) -> bool:
    words = text[len(_SETTING.match(text)[0]) :].split()  # type: ignore[index]
    if not words or not (words[0] in PROGRAMS or (line and words[0].startswith('"$'))):
        return False
    return line or len(words) > 1 or words[0].startswith(("./", ".ci")) or words[0] == "compute-sanitizer"


def _expanded(text: str) -> Iterable[str]:
    """``bench block|vae`` is two commands."""
    found = _ALTERNATIVES.search(text)
    if not found or "'" in text or '"' in text:
        return [text]
    return [text.replace(found[0], one) for one in found[0].split("|")]


def account(
    units: Sequence[Unit], run: Mapping[str, object], not_run: Sequence[NotRun], claims: Sequence[Claim]
) -> Account:
    """Who looks after what."""
    found, used = Account(), set()
    about = {id(unit) for claim in claims for unit in claim.units([*units])}
    for unit in units:
        looked_at = id(unit) in about
        for command in commands(unit):
            reason = next((n for n in not_run if n.fits(unit, command, whole=True)), None)
            if command in run:
                found.commands.setdefault(command, []).append(unit)
            elif reason:
                used.add(reason)
                found.unrun.setdefault(reason.reason, []).append(f"{unit.document}:{unit.line} {command}")
            else:
                found.overlooked.append(f"{unit.document}:{unit.line} the command {command!r}")
            looked_at = True
        if looked_at:
            continue
        reason = next((n for n in not_run if n.fits(unit, unit.text, whole=False)), None)
        if reason:
            used.add(reason)
            found.unrun.setdefault(reason.reason, []).append(f"{unit.document}:{unit.line} {unit.text:.60}")
        elif unit.spans:
            found.names_only.append(unit)
        else:
            found.overlooked.append(f"{unit.document}:{unit.line} {unit.text[:100]!r}")
    found.unused += [f"RUN: {command}" for command in run if command not in found.commands]
    found.unused += [f"NOT_RUN: {n.document}, {n.what}" for n in not_run if n not in used]
    return found
