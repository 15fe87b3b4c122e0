"""What `import keras_mhgd` gives, and what it leaves alone."""

import ast
import importlib
import pathlib
import subprocess
import sys
import types

import pytest

import keras_mhgd

FOLDER = pathlib.Path(keras_mhgd.__file__).parent
MODULES = [
    keras_mhgd,
    *(
        each
        for name in keras_mhgd.__all__
        if isinstance(each := getattr(keras_mhgd, name), types.ModuleType)
    ),
]
# Distilling with `fit` needs none of them.
HEAVY = (
    "ai_edge_litert",
    "jinja2",
    "keras_tuner",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "scipy",
    "tensorboard",
    "tensorflow_datasets",
    "tf2onnx",
)


def defined(module):
    """The public names that a module defines, or a package offers."""
    found = set()
    for node in ast.parse(pathlib.Path(module.__file__).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(each.id for each in node.targets)
        elif isinstance(node, ast.ImportFrom) and hasattr(module, "__path__"):
            # A package offers what it imports from its own modules.
            if f"{node.module}.".startswith(f"{module.__name__}."):
                found.update(each.asname or each.name for each in node.names)
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("module", MODULES, ids=lambda each: each.__name__)
def test_all_names_what_is_public(module):
    assert len(set(module.__all__)) == len(module.__all__)
    assert not [each for each in module.__all__ if not hasattr(module, each)]
    late = {"tuning"} if module is keras_mhgd else set()
    assert {*module.__all__} == defined(module) | late


def test_what_is_imported_late_is_public_all_the_same():
    assert "tuning" in dir(keras_mhgd)
    assert keras_mhgd.tuning is importlib.import_module("keras_mhgd.tuning")
    with pytest.raises(AttributeError, match="'keras_mhgd' has no .* 'tune'"):
        keras_mhgd.tune  # noqa: B018


def test_import_loads_no_package_that_fit_does_not_need():
    """Keras itself imports some of them if they are installed."""
    code = (
        "import sys, keras; before = {*sys.modules}; import keras_mhgd; "
        "print(*{*sys.modules} - before)"
    )
    added = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=FOLDER.parent,
    ).stdout.split()
    assert "keras_mhgd.distiller" in added
    assert not {each.partition(".")[0] for each in added} & {*HEAVY}


def test_heavy_packages_are_imported_where_they_are_used():
    """At the head of no file but that of keras-tuner's hypermodel."""
    found = {}
    for file in FOLDER.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            tops = {name.partition(".")[0] for name in names} & {*HEAVY}
            if tops:
                found[file.name] = tops
    assert found == {"tuning.py": {"keras_tuner"}}
