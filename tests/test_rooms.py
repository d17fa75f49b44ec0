"""Imports point one way: every module may import from its own room and from the rooms below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cinemae_jax"
# From the bottom up; a room may import from the rows above its own and from itself.
ORDER: tuple[tuple[str, ...], ...] = (
    ("runtime", "typed"),
    ("model", "data"),
    ("settings", "weights"),
    ("features",),
    ("detector",),
    ("evaluation",),
    ("training",),  # validates by evaluation's metrics
    ("audit", "ablation"),
    ("serve",),
    ("commands", "train", "evaluate", "extract", "pretrain", "ablate", "smoke"),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
FREE = {
    "__init__",
    "__main__",
    "main",
    "configs",
}  # the public name, the table of commands, config files


def room_of(module: str) -> str:
    """``cinemae_jax.data.loader`` is in the room ``data``."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(source: str) -> set[str]:
    """Modules of this package that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name for name in names if name.startswith("cinemae_jax.")}
    return found


def against_the_order(source: str, room: str) -> list[str]:
    """Imports that a module of a room must not have."""
    if room in FREE:
        return []
    others = {
        name for name in imported(source) if room_of(name) not in (room, *FREE, "__version__")
    }
    return sorted(n for n in others if LEVEL.get(room_of(n), len(ORDER)) >= LEVEL[room])


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert not against_the_order(path.read_text(), room)


def test_a_planted_import_is_found() -> None:
    planted = "def f():\n    from cinemae_jax.training import loop\n"
    assert against_the_order(planted, "data") == ["cinemae_jax.training.loop"]
    assert not against_the_order(planted, "audit")
    assert against_the_order("import cinemae_jax.train", "evaluation") == ["cinemae_jax.train"]


def test_every_room_has_its_place() -> None:
    rooms = {p.relative_to(PACKAGE).with_suffix("").parts[0] for p in PACKAGE.rglob("*.py")}
    assert rooms == LEVEL.keys() | FREE


def test_every_module_is_in_the_tree_of_the_docs() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    modules = [
        p for p in PACKAGE.rglob("*.py") if p.stem != "__init__" and "configs" not in p.parts
    ]
    names = {str(path.relative_to(PACKAGE)) for path in modules}
    assert {name for name in names if f"| `{name}` |" not in text} == set()
