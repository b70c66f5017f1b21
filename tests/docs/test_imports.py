"""The import rules of docs/architecture.md hold: a room imports only rooms that stand before it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "longlive_optimized"
_RULE = re.search(r"A room imports only rooms before it: ([\w, ]+)\.", (ROOT / "docs/architecture.md").read_text())
ROOMS = _RULE[1].split(", ")
BARE = ("config", "keywords", "plain", "video_time")  # these import no room
FILES = [path for path in (*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py"))]


def _module(path: Path) -> list[str]:
    """The module's dotted name below the package, in parts; a package ends with its ``__init__``."""
    below = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path.relative_to(ROOT)
    return [*below.with_suffix("").parts]


def _imports(path: Path) -> set[str]:
    """What the file imports of the package, as dotted names below it."""
    found, here = set(), _module(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            module = [*base, *(node.module or "").split(".")] if node.module else base
            found |= {".".join([*module, alias.name]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("longlive_optimized"):
            found |= {".".join([*node.module.split(".")[1:], alias.name]) for alias in node.names}
    return found


def test_the_rule_names_every_room():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} | {"kernels"}
    assert rooms == set(ROOMS)


def test_imports_go_one_way():
    for path in FILES:
        room, name = _module(path)[0], path.relative_to(ROOT)
        rank = ROOMS.index(room) if room in ROOMS else -1 if room in BARE else len(ROOMS)
        for module in _imports(path):
            other = module.split(".")[0]
            if other in ROOMS and other != room:
                assert ROOMS.index(other) < rank, f"{name} imports {module}"
        if _module(path)[:2] == ["vae", "wan"]:
            assert not any(module.startswith("vae.packed") for module in _imports(path)), name
