"""The house rules: which room imports which, who may use which package, and what the façade shows."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import autonuq

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "autonuq"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.endswith("_pb2.py"))

# Every room with the rooms it may import; imports go down only, siblings do not import each other.
BASE = {"errors", "atomic", "lazy", "notebook"}
QUANTIZED = BASE | {"records", "quant", "graph", "runtime", "pycaffe", "compress"}
STUDIES = QUANTIZED | {"report", "search", "evaluate", "storage", "settings", "study"}
ALLOWED = {
    "errors": set(),
    "lazy": set(),
    "atomic": set(),
    "notebook": set(),
    "records": {"errors"},
    "quant": BASE | {"records"},
    "graph": BASE | {"records"},
    "runtime": BASE | {"records", "quant", "graph"},
    "pycaffe": BASE | {"records", "quant", "graph", "runtime"},
    "compress": QUANTIZED - {"compress"},
    "report": BASE | {"records"},
    "search": BASE | {"records", "quant"},
    "evaluate": QUANTIZED,
    "storage": BASE | {"records"},
    "settings": QUANTIZED,
    "study": STUDIES - {"study"},
    "amct": STUDIES,
    "cli": STUDIES | {"amct"},
}
# Third-party packages that only some places may import.
GATES = {
    "optuna": ("search/", "storage/", "study/", "report/"),
    "sqlalchemy": ("storage/",),
    "onnx": ("graph/",),
    "onnxruntime": ("runtime/",),
    "google": ("graph/", "pycaffe/", "settings/", "amct/"),
    "optuna_dashboard": ("report/",),
    "plotly": ("report/",),
    "constriction": ("quant/",),
    "joblib": ("evaluate/", "study/"),
    "PIL": ("evaluate/builtin/", "pycaffe/"),
    "lmdb": ("evaluate/builtin/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
}


def imported(path):
    """Yield (dotted name, names imported from it) of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", [alias.name for alias in node.names]


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
    assert rooms - {room} <= ALLOWED[room]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_third_party_packages_stay_behind_their_gates(path):
    packages = {module.split(".")[0] for module, _ in imported(path)}
    for package, places in GATES.items():
        if package in packages:
            assert relative(path).startswith(places), f"{package} must not be imported here"


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) != "cli"], ids=relative)
def test_only_the_commands_print_or_exit(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "sys.exit")


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
    forbidden = {"utils.py", "common", "caffe", "caffe.py"}
    assert not {path.name for path in PACKAGE.rglob("*")} & forbidden


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
            assert not re.match(r"autonuq:\w+$|ratio/", node.value), node.value
