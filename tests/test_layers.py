"""Where imports may point: down the list of rooms, never up, and never in a circle."""

import ast
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llmshearing"
# From top to bottom; rooms on one line may not import one another.
ROOMS = [
    ["utils", "__main__"],
    ["commands"],
    ["training"],
    ["building"],
    ["report"],
    ["evaluation", "tuning"],
    ["planning"],
    ["sharding"],
    ["callbacks"],
    ["checkpoints"],
    ["models"],
    ["pruning"],
    ["data"],
    ["datasets"],
    ["shapes"],
    ["config"],
    ["fired"],
    ["cli"],
    ["files", "progress", "stack"],
]
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
# Entry points that lie in the room whose command they are, and what the original's users import from there.
ENTRIES = {"report.__main__", "data.prepare", "data.inspect", "data.merge_data", "models.l0_module"}
WITHOUT_COMPOSER = ["checkpoints", "models", "pruning", "data", "datasets", "shapes", "config", "commands"]
COMPOSERS_SIDE = {"models.composer_llama", "models.composer_pythia", "models.model_registry"}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package but `__init__`s of rooms without code, by its name below `llmshearing`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found["" if name == "__init__" else name] = ast.parse(path.read_text())
    return found


def imports(tree: ast.Module, prefix: str = "llmshearing") -> set[str]:
    """Modules and names that a module imports, wherever in it, by their names below `prefix`."""
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.removeprefix(f"{prefix}.") for name in names if name.startswith(f"{prefix}.")}
    return found


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_is_in_a_room() -> None:
    assert not [name for name in modules() if name and room(name) not in RANK]


def test_no_import_points_up_or_sideways() -> None:
    wrong = [
        f"{name} -> {target}"
        for name, tree in modules().items()
        if name and name not in ENTRIES
        for target in imports(tree)
        if room(target) != room(name) and RANK[room(target)] <= RANK[room(name)]
    ]
    assert not wrong


def test_no_imports_go_in_a_circle() -> None:
    trees = modules()
    graph = {}
    for name, tree in trees.items():
        targets = {target if target in trees else target.rpartition(".")[0] for target in imports(tree)}
        graph[name] = {target for target in targets if target in trees and target != name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    sys.setrecursionlimit(10_000)
    for name in graph:
        visit(name, ())


def test_a_second_trainer_could_be_put_under_the_lower_rooms() -> None:
    """Model, pruning, mixture, checkpoints and conversion import no Composer."""
    composers = {name for name, tree in modules().items() if imports(tree, "composer")}
    allowed = COMPOSERS_SIDE | {"commands.plan", "commands.train"}
    assert not [name for name in composers if room(name) in WITHOUT_COMPOSER and name not in allowed]


def test_one_method_is_named_only_where_it_is_at_home() -> None:
    """Decoder, optimizer, loss, checkpoints, planner and report know the interface, not the methods."""
    home = {"pruning", "pruning.l0", "pruning.l0_aim", "models.l0_module"}
    named = {
        name
        for name in modules()
        if not name.startswith("config")
        and any(word in _text(name) for word in ("l0_module", "L0Module", "L0_PREFIX", "L0Config"))
    }
    assert named <= home


def _text(name: str) -> str:
    path = PACKAGE.joinpath(*name.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
