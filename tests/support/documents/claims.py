"""The registry of claims: a sentence of a document, word for word, and the function that tries it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from .markdown import Unit

CLAIMS: list[Claim] = []


@dataclass(frozen=True)
class Claim:
    """What ``document`` says, and how it is tried.

    quote: words of the document, or None for all of a section's rows or items. check: called with what it has
    parameters for, ``units`` (those that the claim is about) and ``place`` (where commands run, which takes seconds and
    more); raises AssertionError.
    """

    document: str
    section: str | None
    quote: str | None
    kind: str | None
    check: Callable

    @property
    def name(self) -> str:
        return f"{self.document}: {self.quote or f'{self.section}, each {self.kind}'}"

    @property
    def slow(self) -> bool:
        return "place" in inspect.signature(self.check).parameters

    @property
    def is_of_its_passage(self) -> bool:
        """Whether the check reads its passage, and so differs from one to the next."""
        return "units" in inspect.signature(self.check).parameters

    def units(self, units: list[Unit]) -> list[Unit]:
        """Those that the claim is about."""
        return [unit for unit in units if unit.document == self.document and self._is_about(unit)]

    def _is_about(self, unit: Unit) -> bool:
        if self.quote is not None:
            return " ".join(self.quote.split()) in " ".join(unit.text.split())
        return unit.section == self.section and unit.kind == self.kind

    def holds(self, units: list[Unit], place: object = None) -> None:
        """Raises AssertionError, and whatever the check raises."""
        about = self.units(units)
        assert about, "the document does not say this any more: see what it says now, and whether that is so"
        offered = {"units": about, "place": place}
        self.check(**{name: offered[name] for name in inspect.signature(self.check).parameters})


def says(document: str, *quotes: str) -> Callable:
    """The function tries each of these passages of ``document``."""

    def add(check: Callable) -> Callable:
        CLAIMS.extend(Claim(document, None, quote, None, check) for quote in quotes)
        return check

    return add


def lists(document: str, section: str, kind: str = "row") -> Callable:
    """The function tries all rows of a section's tables, or its items; it is given them as ``units``."""

    def add(check: Callable) -> Callable:
        CLAIMS.append(Claim(document, section, None, kind, check))
        return check

    return add
