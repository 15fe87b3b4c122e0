"""What `import keras_mhgd` gives, and what it leaves alone."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import re
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
# Arguments of methods of Keras that keep their meaning in a class of the
# library. A method that takes no others needs no docstring.
KERAS = {
    "build": {"input_shape"},
    "call": {"inputs", "training"},
    "compile_from_config": {"config"},
    "compute_mask": {"inputs", "previous_mask"},
    "compute_output_shape": {"input_shape"},
    "from_config": {"config", "custom_objects"},
    "get_compile_config": set(),
    "get_config": set(),
    "get_metrics_result": set(),
    "make_train_function": {"force"},
    "test_step": {"data"},
    "train_step": {"data"},
}
HOOK = re.compile("on_(train|test|predict|epoch|batch)_.*")
HOOK_ARGUMENTS = {"batch", "epoch", "logs"}
# Keras has call arguments in the class's docstring. Those of a NamedTuple or a
# dataclass are its attributes.
SECTIONS = "Args|Attributes|Call arguments"


def defined(module):
    """The public names that a module defines, or a package offers."""
    found = set()
    for node in ast.parse(pathlib.Path(module.__file__).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(each.id for each in node.targets)
        elif isinstance(node, ast.AnnAssign):
            found.add(node.target.id)
        elif isinstance(node, ast.ImportFrom) and hasattr(module, "__path__"):
            # A package offers what it imports from its own modules.
            if f"{node.module}.".startswith(f"{module.__name__}."):
                found.update(each.asname or each.name for each in node.names)
    return {name for name in found if not name.startswith("_")}


def is_own(kind):
    return kind.__module__.startswith("keras_mhgd")


def is_method_of(kind):
    """A function that tells whether a name is that of a public method."""

    def is_method(name):
        found = getattr(kind, name)
        is_called = inspect.isfunction(found) or inspect.ismethod(found)
        return is_called and not name.startswith("_")

    return is_method


def named(documented):
    """The arguments that a docstring describes."""
    text = inspect.cleandoc(documented.__doc__ or "") + "\n"
    parts = re.findall(
        rf"^(?:{SECTIONS}):\n((?:    .*\n|\n)+)", text, re.MULTILINE
    )
    heads = re.findall(r"^    (\*{0,2}\w+): ", "".join(parts), re.MULTILINE)
    return {each.lstrip("*") for each in heads}


def taken(function):
    arguments = inspect.signature(function).parameters.values()
    return {
        each.name: each.kind is each.VAR_KEYWORD
        for each in arguments
        if each.name not in ("self", "cls")
    }


def undocumented_of_class(kind):
    """What the docstring of a class lacks: itself, or arguments.

    Other arguments of a Keras object are Keras's own. A dataclass has fields
    of its bases, which have described them.
    """
    if not vars(kind).get("__doc__"):
        return ["a docstring"]
    is_keras = any(base.__module__.startswith("keras.") for base in kind.mro())
    known = named(kind)
    if dataclasses.is_dataclass(kind):
        known = known.union(*map(named, filter(is_own, kind.mro())))
    return [
        name
        for name, is_rest in taken(kind).items()
        if name not in known and not (is_rest and is_keras)
    ]


def undocumented_of_method(kind, name):
    """What the docstring of a method lacks: itself, or arguments.

    An override may leave both to the method of the library that it overrides.
    """
    own = [each for each in kind.mro() if is_own(each)]
    same = [vars(each)[name] for each in own if name in vars(each)]
    others = [each for each in kind.mro() if not is_own(each)]
    allowed = HOOK_ARGUMENTS if HOOK.fullmatch(name) else KERAS.get(name)
    if not any(hasattr(each, name) for each in others):
        allowed = None
    known = set().union(*map(named, same), allowed or ())
    if name == "call":
        known = known.union(*map(named, own))
    missing = [each for each in taken(getattr(kind, name)) if each not in known]
    described = any(each.__doc__ for each in same)
    if not described and (missing or allowed is None):
        return ["a docstring", *missing]
    return missing


def undocumented(module):
    """A line for each public name of which a docstring lacks something."""
    lacks = {}
    for name in module.__all__:
        found = getattr(module, name)
        path = f"{module.__name__}.{name}"
        if inspect.isfunction(found):
            lacks[path] = ["a docstring"] * (not found.__doc__)
            lacks[path] += [
                each for each in taken(found) if each not in named(found)
            ]
        elif inspect.isclass(found):
            lacks[path] = undocumented_of_class(found)
            for each in filter(is_own, found.mro()):
                for method in filter(is_method_of(found), vars(each)):
                    lacks[f"{path}.{method}"] = undocumented_of_method(
                        found, method
                    )
    return [
        f"{path} must document: {', '.join(missing)}"
        for path, missing in lacks.items()
        if missing
    ]


@pytest.mark.parametrize("module", MODULES, ids=lambda each: each.__name__)
def test_every_argument_is_documented(module):
    found = undocumented(module)
    assert not found, "\n".join(found)


def test_what_is_not_documented_is_found():
    def public(first, *others, **options):
        """Does nothing.

        Args:
            others: These.
        """

    class Base:
        """Has a method.

        Args:
            size: Is taken.
        """

        __module__ = "keras_mhgd.made"

        def __init__(self, size, weight):
            pass

        def method(self, own, more):
            """Does nothing.

            Args:
                own: This.
            """

        def build(self, input_shape):
            pass

    class Inner(Base):
        def method(self, own, more):
            pass

        def build(self, input_shape):
            pass

    made = types.ModuleType("made")
    made.public, made.Base, made.Inner = public, Base, Inner
    made.__all__ = ["public", "Base", "Inner"]
    Inner.__module__ = Base.__module__
    assert undocumented(made) == [
        "made.public must document: first, options",
        "made.Base must document: weight",
        "made.Base.method must document: more",
        "made.Base.build must document: a docstring, input_shape",
        "made.Inner must document: a docstring",
        "made.Inner.method must document: more",
        "made.Inner.build must document: a docstring, input_shape",
    ]


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


def imported(code):
    """The modules that a new process imports, after Keras, to run code."""
    code = (
        "import sys, keras; before = {*sys.modules}\n"
        f"{code}\n"
        "print(*{*sys.modules} - before)"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=FOLDER.parent,
    ).stdout.split()


def test_import_loads_no_package_that_fit_does_not_need():
    """Keras itself imports some of them if they are installed."""
    added = imported("import keras_mhgd")
    assert "keras_mhgd.distiller" in added
    assert not {each.partition(".")[0] for each in added} & {*HEAVY}


FIT = """
import numpy, keras_mhgd
def network():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
distiller = keras_mhgd.Distiller(network(), network(), "soft_logits")
distiller.compile(
    "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)
images, labels = numpy.ones((8, 4), "float32"), numpy.zeros(8, "int32")
distiller.fit(images, labels, verbose=0)
"""


def test_fit_loads_no_package_that_it_does_not_need():
    added = {each.partition(".")[0] for each in imported(FIT)}
    assert "keras_mhgd" in added
    assert not added & {*HEAVY}


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
