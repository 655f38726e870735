"""The house rules: which room imports which, who may use which package, and what the façade shows."""

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import autonuq

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "autonuq"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.endswith("_pb2.py"))

# The floors of the house, from the bottom up; a room imports from the floors below, siblings do not import each other.
FLOORS = (
    {"file_names", "masking", "processes", "streams", "visible"},
    {"errors", "lazy", "notebook", "terminal"},
    {"atomic", "plain", "reading"},
    {"array_files", "records"},
    {"headline"},
    {"graph", "quant"},
    {"runtime"},
    {"pycaffe"},
    {"compress"},
    {"report", "search", "evaluate", "storage", "settings"},
    {"study"},
    {"amct"},
    {"cli"},  # beside `amct`, whose two static ways are commands
    {"__main__"},
)
BASE = FLOORS[0] | FLOORS[1] | FLOORS[2] | FLOORS[3]
# Rooms that know less than their floor allows: no file and no network, or plain data only.
MODEST = {
    "records": {"errors", "plain"},
    "headline": {"records"},
    "report": BASE | {"headline"},
    "search": BASE | {"quant"},
    "storage": BASE,
}
ALLOWED = {room: MODEST.get(room, set().union(*FLOORS[:floor])) for floor, rooms in enumerate(FLOORS) for room in rooms}
# Third-party packages and the places that may import them; no other package is imported.
GATES = {
    "PIL": ("evaluate/builtin/", "pycaffe/"),
    "caffe": ("graph/hosted/autonuq_layers.py",),  # which runs in somebody else's
    "cloudpickle": ("evaluate/sending.py", "study/dispatch.py"),
    "filelock": ("storage/",),
    "google": ("graph/", "pycaffe/", "settings/", "amct/"),
    "joblib": ("evaluate/", "quant/cores.py", "study/"),
    "lmdb": ("evaluate/builtin/",),
    "numba": ("quant/machine_code.py",),
    "numpy": ("",),
    "onnx": (
        "graph/lowering.py",
        "graph/operators/",
        "graph/backward/",
        "graph/gradients.py",
        "graph/onnx_model.py",
        "graph/any_batch.py",
        "graph/detached.py",
    ),
    "onnxruntime": ("runtime/",),
    "optuna": ("search/", "storage/", "study/", "report/"),
    "optuna_dashboard": ("report/dashboard.py",),
    "pandas": ("study/",),
    "psutil": ("evaluate/isolation.py", "processes.py"),
    "pycocotools": ("evaluate/builtin/",),
    "plotly": ("report/",),
    "redis": ("storage/",),
    "rich": ("cli/", "study/display.py", "terminal.py"),
    "sqlalchemy": ("storage/",),
    "threadpoolctl": ("quant/cores.py",),
    "typer": ("cli/",),
}


def imported(path):
    """Yield (dotted name, names imported from it) of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: name the module in full, from 'autonuq' on"
            yield node.module, [alias.name for alias in node.names]


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=relative)
def test_imports_go_down_only(path):
    room = room_of(path)
    rooms = set()
    for module, names in imported(path):
        if module == "autonuq":
            rooms |= set(names)
        elif module.startswith("autonuq."):
            rooms.add(module.split(".")[1])
    wrong = rooms - {room} - ALLOWED[room]
    assert not wrong, f"{room}/ must not import {', '.join(sorted(wrong))}; it may import {sorted(ALLOWED[room])}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_third_party_packages_stay_behind_their_gates(path):
    packages = {module.split(".")[0] for module, _ in imported(path)} - sys.stdlib_module_names - {"autonuq"}
    for package in packages:
        assert package in GATES, f"{package} is a package that the house does not know: say in GATES who may import it"
        places = GATES[package]
        assert relative(path).startswith(places), f"{package} must not be imported here, only in {', '.join(places)}"


def test_every_room_has_its_floor():
    assert {room_of(path) for path in MODULES} - {"__init__"} == ALLOWED.keys()


def test_tests_mirror_the_rooms():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and list(path.glob("test_*.py"))}
    assert folders <= ALLOWED.keys()


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) != "cli"], ids=relative)
def test_only_the_commands_print_or_exit(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call not in ("print", "sys.exit", "exit"), f"line {node.lineno}: {call} belongs to cli/ alone"


def test_facade_is_sorted_complete_and_small():
    assert autonuq.__all__ == sorted(autonuq.__all__, key=lambda name: (name.islower(), name))
    assert len(autonuq.__all__) <= 18
    assert all(hasattr(autonuq, name) for name in autonuq.__all__)


def definitions(kind):
    """Yield (name, file) of the classes or public functions at the top of every module of ours that Python 3 runs."""
    for path in MODULES:
        if path.name != "autonuq_layers.py":
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, kind) and (kind is ast.ClassDef or not node.name.startswith("_")):
                    yield node.name, relative(path)


def shared_names(named):
    """Return the names that are defined in more than one place, with the places."""
    places = defaultdict(list)
    for name, place in named:
        places[name].append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


def test_two_classes_do_not_share_a_name():
    assert shared_names(definitions(ast.ClassDef)) == {}


def test_two_public_functions_do_not_share_a_name():
    """Apart from commands, which are called like what they run, and from `amct`'s and `pycaffe`'s interface."""
    own = [(name, place) for name, place in definitions(ast.FunctionDef) if not place.startswith("cli/")]
    assert shared_names(own).keys() <= {"install"}


def test_a_module_and_a_function_of_its_room_do_not_share_a_name():
    modules = {(room_of(path), path.stem) for path in MODULES}
    functions = {(place.split("/")[0], name) for name, place in definitions(ast.FunctionDef)}
    assert modules & functions <= {("amct", "auto_nuq")}  # AMCT has both


def test_names_that_are_not_to_be_used():
    """A heap of helpers has no subject, and `import caffe` must find somebody else's."""
    found = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_dir() or path.suffix == ".py"}
    assert not [str(path) for path in found if path.stem in ("utils", "helpers", "common", "misc", "caffe")]


def test_no_registry_host_and_no_absolute_path_of_a_machine():
    hidden = [path for folder in (".ci", ".github") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert ROOT / ".github" / "CONTRIBUTING.md" in hidden
    for path in [*MODULES, ROOT / "pyproject.toml", ROOT / "README.md", *hidden]:
        assert not re.search(r"pypi\.org|registry\.npmjs|/work/", path.read_text()), path


@pytest.mark.parametrize("path", [path for path in MODULES if relative(path) != "records.py"], ids=relative)
def test_stored_words_are_spelt_in_one_place(path):
    """Attribute keys and the parameters' prefix stand in `records`; docstrings may quote them."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            spelt = re.match(r"autonuq:\w+$|ratio/|copy of ", node.value)
            assert not spelt, f"line {node.lineno}: '{node.value}' is a stored word; its constant is in records"
