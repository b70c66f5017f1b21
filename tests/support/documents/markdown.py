"""Markdown as a list of units: paragraphs, list items, rows of tables, lines and blocks of code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_FENCE = re.compile(r"^```(\w*)\s*$")
_HEADING = re.compile(r"^#+ (.+)$")
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.) ")
_RULE = re.compile(r"\|[|\s:-]+\|")
_COMMENT = re.compile(r"\s+# .*$")


@dataclass(frozen=True)
class Unit:
    """A piece of a document that says something.

    document: its name; line: counted from 1; section: the heading above; kind: paragraph, item, row, shell (a line of
    an indented block, its comment included), or the language of a fenced block. text: as it stands, on one line but for
    fenced blocks. table: of a row, the head of its first column.
    """

    document: str
    line: int
    section: str
    kind: str
    text: str
    table: str = ""

    @property
    def spans(self) -> list[str]:
        """What stands between backquotes."""
        if self.kind not in ("paragraph", "item", "row"):
            return []
        return [" ".join(span.split()) for _, span in SPAN.findall(self.text)]

    @property
    def cells(self) -> list[str]:
        """A row's cells."""
        return [cell.strip() for cell in re.split(r"(?<!\\)\|", self.text.strip().strip("|"))]

    @property
    def command(self) -> str:
        """A shell line without its comment."""
        return " ".join(_COMMENT.sub("", self.text).split())


def read(path: Path, name: str) -> list[Unit]:
    """The units of a Markdown file."""
    return parse(path.read_text(), name)


def parse(text: str, name: str) -> list[Unit]:
    """The units of a Markdown text. Heads of tables, pictures and headings are none."""
    units: list[Unit] = []
    section, table, fence, open_unit = "", "", None, False
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if fence is not None:
            if _FENCE.match(line):
                kind, begin, block = fence
                units.append(Unit(name, begin, section, kind, "\n".join(block)))
                fence = None
            else:
                fence[2].append(line)
        elif found := _FENCE.match(line):
            fence, open_unit = (found[1] or "text", number, []), False
        elif found := _HEADING.match(line):
            section, open_unit = found[1], False
        elif not line.strip() or line.startswith(("![", "---")):
            open_unit = False
        elif line.startswith("|"):
            if number < len(lines) and _RULE.fullmatch(lines[number]):
                table = line.strip("| ").split("|")[0].strip()
            elif not _RULE.fullmatch(line):
                units.append(Unit(name, number, section, "row", line.strip(), table))
            open_unit = False
        elif line.startswith("    ") and (not open_unit or units[-1].kind == "shell"):
            units.append(Unit(name, number, section, "shell", line.strip()))
            open_unit = True
        elif _ITEM.match(line):
            units.append(Unit(name, number, section, "item", line.strip()))
            open_unit = True
        elif open_unit and units[-1].kind != "shell":
            last = units.pop()
            units.append(Unit(name, last.line, section, last.kind, f"{last.text} {line.strip()}"))
        else:
            units.append(Unit(name, number, section, "paragraph", line.strip()))
            open_unit = True
    return units
