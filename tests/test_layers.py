"""Imports point one way: from the commands down to the errors."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "jaxcls"

LAYERS = (
    ("errors",),
    ("files",),
    ("duration", "options", "parallel", "download", "imagenet_classes"),
    ("augment", "data", "losses", "models", "optim", "report"),
    ("metrics",),
    ("config",),
    ("checkpoint",),
    ("inference",),
    ("training", "benchmarks"),
    ("commands",),
    (
        *("train", "evaluate", "average", "probe", "lr_find"),
        *("prepare", "preview", "benchmark", "models.__main__"),
    ),
    ("__main__",),
)
"""The rooms of the package, the lowest first. A room imports from the layers below its own; the
rooms of one layer do not know each other."""

LEVEL = {room: level for level, layer in enumerate(LAYERS) for room in layer}


def room(module: str) -> str:
    """Returns the room of a module: "data" for "jaxcls.data.order"."""
    parts = module.split(".")[1:]
    return ".".join(parts) if ".".join(parts) in LEVEL else parts[0]


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yields the name and the code of every module but the package itself."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts != ("jaxcls", "__init__"):
            yield (
                ".".join(p for p in parts if p != "__init__"),
                ast.parse(path.read_text()),
            )


def imports(tree: ast.Module) -> Iterator[str]:
    """Yields what a module imports, anywhere in it: "jaxcls.data.order", "numpy"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports are absolute"
            if node.module == "jaxcls":
                yield from (f"jaxcls.{name.name}" for name in node.names)
            else:
                yield node.module


def test_every_room_has_a_layer() -> None:
    assert {room(name) for name, _ in modules()} == set(LEVEL)


def test_imports_point_down() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imports(tree)
        if target.startswith("jaxcls.") and target != "jaxcls.__version__"
        if room(target) != room(name) and LEVEL[room(target)] >= LEVEL[room(name)]
    ]
    assert not wrong, "\n".join(wrong)


def test_orbax_and_clu_are_touched_in_one_place() -> None:
    users = {
        library: {
            name
            for name, tree in modules()
            if any(target.split(".")[0] == library for target in imports(tree))
        }
        for library in ("orbax", "clu")
    }
    assert users["orbax"] == {"jaxcls.checkpoint.checkpoints"}
    assert len(users["clu"]) <= 1
