"""What stands where: imports run one way, and each folder says what it is."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TOPS = ("keras_mhgd", "training", "benchmarks")


def name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {
    name(path): path for top in TOPS for path in (ROOT / top).rglob("*.py")
}


def module(node, path):
    """The module that `from <module> import` names, also a relative one."""
    if not node.level:
        return node.module
    above = path.relative_to(ROOT).parts[: -node.level]
    return ".".join([*above, *filter(None, [node.module])])


def imported(path):
    """The modules of this repository that a file imports, also in functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            outer = module(node, path)
            for each in node.names:
                inner = f"{outer}.{each.name}"
                found.add(inner if inner in FILES else outer)
    return found & FILES.keys()


IMPORTS = {file: imported(path) - {file} for file, path in FILES.items()}


def room(file):
    """A folder of a top folder, or a file that lies in it directly."""
    return ".".join(file.split(".")[:2])


def test_no_file_imports_one_that_imports_it():
    order = list(graphlib.TopologicalSorter(IMPORTS).static_order())
    assert order[0] != order[-1]  # else an error has named the circle


def test_no_folder_imports_one_that_imports_it():
    rooms = {}
    for file, others in IMPORTS.items():
        rooms.setdefault(room(file), set()).update(map(room, others))
    for found, others in rooms.items():
        others.discard(found)
    order = list(graphlib.TopologicalSorter(rooms).static_order())
    # As CONTRIBUTING.md has it.
    places = [
        order.index(f"keras_mhgd.{each}")
        for each in ("data", "features", "methods", "transfer", "distiller")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("top", TOPS)
def test_what_is_installed_imports_nothing_that_is_not(top):
    """The library no programs, programs no benchmarks."""
    above = TOPS[TOPS.index(top) + 1 :]
    found = {
        (file, other)
        for file, others in IMPORTS.items()
        for other in others
        if file.split(".")[0] == top and other.split(".")[0] in above
    }
    assert not found


def test_programs_import_each_other_by_relative_names():
    """Installed, `training` is `keras_mhgd.training`."""
    for path in (ROOT / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] != "training", path
            if isinstance(node, ast.Import):
                tops = [each.name.split(".")[0] for each in node.names]
                assert "training" not in tops, path


def test_each_folder_says_what_is_in_it():
    folders = {path.parent for path in FILES.values()}
    for folder in folders:
        if folder == ROOT / "benchmarks":
            continue
        text = ast.get_docstring(
            ast.parse((folder / "__init__.py").read_text())
        )
        assert text and text.partition("\n")[0].endswith("."), folder
