"""Imports run one way: from what people run down to the ground, and names come from the module that owns them."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# Whoever stands in a row may import from the rows above it, and from its own folder.
FLOORS = [
    {"cli_utils", "metrics_utils", "visual_utils"},
    {"data"},
    {"data_utils"},
    {"checks", "models"},
    {"training"},
    {"reports"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path
    for path in [*REPOSITORY.glob("*.py"), *(path for room in FLOOR for path in (REPOSITORY / room).glob("*.py"))]
}
SCRIPTS = {name for name in MODULES if "." not in name and name not in FLOOR}


def imported(name):
    """(module, name or None) of everything that a module imports from the project, wherever in it."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None) if inner in MODULES else (node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def of_project(name):
    return [(module, entry) for module, entry in imported(name) if module in MODULES]


def defined(name):
    """What a module defines at its top level, without what it imports."""
    names = set()
    for node in ast.parse(MODULES[name].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return names


@pytest.mark.parametrize("name", sorted(MODULES.keys() - SCRIPTS))
def test_rooms_import_from_below_alone(name):
    room = name.split(".")[0]
    for module, _ in of_project(name):
        other = module.split(".")[0]
        assert other in FLOOR, f"{name} imports the script {module}"
        assert other == room or FLOOR[other] < FLOOR[room], f"{name} imports {module}, which stands above or beside it"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_names_come_from_their_owner_and_private_ones_stay_at_home(name):
    for module, entry in of_project(name):
        if entry is not None:
            assert not entry.startswith("_"), f"{name} imports {entry} from {module}"
            assert entry in defined(module), f"{name} imports {entry} from {module}, which does not define it"


def test_no_circles():
    arrows = {name: {module for module, _ in of_project(name)} for name in MODULES}
    while leaves := {name for name, others in arrows.items() if not others & arrows.keys()}:
        arrows = {name: others for name, others in arrows.items() if name not in leaves}
    assert not arrows, f"modules that import each other: {', '.join(sorted(arrows))}"


def test_rooms_say_what_lives_there_and_hand_nothing_on():
    for room in FLOOR.keys() - {"cli_utils", "metrics_utils", "visual_utils", "data_utils"}:
        (docstring,) = ast.parse((REPOSITORY / room / "__init__.py").read_text(encoding="utf-8")).body
        assert isinstance(docstring, ast.Expr)
