"""What the documents say, as far as it takes seconds; ``run_commands.py`` beside this file runs the rest."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from support.documents.account import NotRun, account, commands, documents
from support.documents.claims import CLAIMS, Claim
from support.documents.markdown import Unit, parse
from support.documents.tables import body, same_signature, value, with_defaults


def _script():
    spec = importlib.util.spec_from_file_location("run_commands", Path(__file__).with_name("run_commands.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
UNITS = documents()

TEXT = """# Title

A paragraph with `a
name` and ``two `quotes` `` that
goes on.

    longlive-optimized bench block|vae --model DIR   # a comment
    FLAG=1 pytest -q

| field | default |
|---|---|
| `a`, `b` | 1, none |

- an item
  that goes on
1. another

```python
import torch

print(1)
```

## Next

![a picture](x.png)
After it.
"""


def test_a_document_is_taken_apart():
    units = parse(TEXT, "x.md")
    assert [(unit.kind, unit.line, unit.section) for unit in units] == [
        ("paragraph", 3, "Title"),
        ("shell", 7, "Title"),
        ("shell", 8, "Title"),
        ("row", 12, "Title"),
        ("item", 14, "Title"),
        ("item", 16, "Title"),
        ("python", 18, "Title"),
        ("paragraph", 27, "Next"),
    ]
    paragraph, bench, flag, row, item, _, python, last = units
    assert paragraph.spans == ["a name", "two `quotes`"] and last.text == "After it."
    assert commands(bench) == [f"longlive-optimized bench {name} --model DIR" for name in ("block", "vae")]
    assert commands(flag) == ["FLAG=1 pytest -q"] and commands(python) == ["python: import torch"]
    assert (row.cells, row.table) == (["`a`, `b`", "1, none"], "field") and item.text == "- an item that goes on"
    assert python.text == "import torch\n\nprint(1)"


def test_commands_within_sentences():
    def found(span: str) -> list[str]:
        return commands(Unit("x.md", 1, "", "paragraph", f"Say `{span}` now."))

    assert found("doctor DIR --verify") and found("./setup_env.sh demo") and found("SCOPE=x pytest -s a.py")
    assert not found("doctor") and not found("generate_block(prompt)") and not found("pipeline.overlay")


def test_what_nobody_looks_at_is_told():
    units = parse("Prose.\n\n    pytest -q new.py\n\nClaimed: 3.\n\nNot run.\n\nWith `a_name`.\n", "x.md")
    claim = Claim("x.md", None, "Claimed: 3.", None, lambda: None)
    found = account(
        units, {"pip gone": None}, [NotRun("x.md", "*", "Not run", "why"), NotRun("y", "*", "z", "-")], [claim]
    )
    assert found.overlooked == ["x.md:1 'Prose.'", "x.md:3 the command 'pytest -q new.py'"]
    assert found.unrun == {"why": ["x.md:7 Not run."]} and [unit.line for unit in found.names_only] == [9]
    assert found.unused == ["RUN: pip gone", "NOT_RUN: y, z"]


def test_a_claim_that_the_document_drops_fails():
    with pytest.raises(AssertionError, match="does not say this any more"):
        Claim("x.md", None, "gone", None, lambda: None).holds(parse("Other words.", "x.md"))


def test_values_and_signatures():
    assert value("1000, 750") == (1000, 750) and value("none") is None and value("`bf16`") == "bf16"
    assert with_defaults("`a` (true), `b` (`x`) and `c` (0.8)") == {"a": True, "b": "x", "c": 0.8}
    assert body(parse("| x |\n|---|\n| 1 |\n\n| y |\n|---|\n| 2 |\n", "x.md"), "y") == [["2"]]

    def function(a, b=1, **rest): ...

    same_signature("function(a, b=1, **how)", function, method=False)
    for wrong in ("function(b)", "function(a, b=2)"):
        with pytest.raises(AssertionError):
            same_signature(wrong, function, method=False)


def test_all_of_the_documents_is_run_or_has_a_reason():
    found = account(UNITS, SCRIPT.RUN, SCRIPT.NOT_RUN, CLAIMS)
    assert not found.overlooked and not found.unused


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if not claim.slow], ids=lambda claim: claim.name[:80])
def test_the_claim_holds(claim):
    claim.holds(UNITS)


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim.slow], ids=lambda claim: claim.name[:80])
def test_the_document_still_says_so(claim):
    assert claim.units(UNITS)


@pytest.mark.parametrize("document", SCRIPT.DOCUMENTS)
def test_names_are_in_the_sources(document):
    assert not SCRIPT.try_names([unit for unit in UNITS if unit.document == document])
