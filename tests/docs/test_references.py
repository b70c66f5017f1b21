"""What the documents and the code name is there: files, sections of docs/model.md, tests, commands' programs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if p.is_file())
SOURCES = [
    p
    for room in ("csrc", "docs", "kernels", "longlive_optimized", "tests")
    for p in (ROOT / room).rglob("*")
    if p.suffix in {".py", ".md", ".cu", ".cuh", ".h", ".cpp", ".sh"} and p != Path(__file__)
]

# "docs/model.md 2.2, step 5", "docs/model.md 7.2, 7.4 and 7.5": a citation goes on over sections in a row.
_CITATION = re.compile(r"docs/model\.md\W{1,2}((?:\d+(?:\.\d+)?(?:, | and )?)+)")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)?(?:#([^)]+))?\)")
_ROOMS = "csrc|docs|kernels|longlive_optimized|tests"
_PACKAGE_ROOMS = "bench|cli|demo|engine|model|text|tinyworld|vae|weights"
_PATH = re.compile(rf"`((?:{_ROOMS}|{_PACKAGE_ROOMS})/[\w/.-]+\.\w+)`")


def _sections(document: str) -> set[str]:
    return set(re.findall(r"^#+ (\d+(?:\.\d+)?)\b", (ROOT / document).read_text(), re.MULTILINE))


def test_every_citation_of_the_model_resolves():
    sections, cited = _sections("docs/model.md"), 0
    for source in SOURCES:
        for run in _CITATION.findall(source.read_text()):
            for section in re.findall(r"\d+(?:\.\d+)?", run):
                assert section in sections, f"{source.relative_to(ROOT)} cites docs/model.md {section}"
                cited += 1
        assert "model specification" not in source.read_text(), f"{source.relative_to(ROOT)} names no document"
    assert cited > 10


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(document):
    text = document.read_text()
    for path, anchor in _LINK.findall(text):
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"link to {path}"
        if anchor:
            assert anchor in _anchors(target.read_text()), f"link to {path}#{anchor}"
    for path in _PATH.findall(text.partition("## Where what comes next")[0]):
        pattern = re.sub("[A-Z]{4,}", "*", path)  # kernels/NAME.py is any of its kind
        assert any(ROOT.glob(pattern)) or any(ROOT.glob(f"longlive_optimized/{pattern}")), path


def _anchors(text: str) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
