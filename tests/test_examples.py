"""Every example in a docstring, README.md and docs/usage.md is run."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = (".fit(", ".search(", "export_student(")  # some of what takes seconds


def examples():
    for module in pkgutil.walk_packages(
        keras_mhgd.__path__, keras_mhgd.__name__ + "."
    ):
        found = doctest.DocTestFinder(exclude_empty=True).find(
            importlib.import_module(module.name)
        )
        for test in found:
            code = "".join(line.source for line in test.examples)
            trains = any(word in code for word in TRAIN)
            if code:
                yield pytest.param(
                    test,
                    code,
                    id=test.name,
                    marks=[pytest.mark.slow] * trains,
                )


NETWORKS = {"teacher": "vgg_small", "student": "resnet_small"}


def names(code):
    """Gives what an example takes as given; networks only if it names them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, size=32)
    networks = {
        name: keras_mhgd.models.get(network, (28, 28, 1), 10)
        for name, network in NETWORKS.items()
        if name in code
    }
    return networks | {
        "keras": keras,
        "keras_mhgd": keras_mhgd,
        "keras_tuner": keras_tuner,
        "tf": tf,
        "images": rng.normal(size=(32, 28, 28, 1)).astype("float32"),
        "labels": labels,
        "targets": np.eye(10)[labels],
    }


@pytest.mark.parametrize(("example", "code"), list(examples()))
def test_docstring(example, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "mhan.keras" in code:
        keras_mhgd.graph.MHAN([16, 32, 64]).save("mhan.keras")
    example.globs.update(names(code))
    runner = doctest.DocTestRunner(
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert runner.run(example).failed == 0


def run_page(name):
    """Runs the Python of a page, with less data and fewer epochs."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL
    )
    code = "\n".join(blocks)
    for old, new in {
        "subset=2000": "subset=200",
        "epochs=40": "epochs=1",
    }.items():
        assert old in code
        code = code.replace(old, new)
    code = code.replace('"saved_models/student"', '"student", verbose=False')
    names = {}
    exec(compile(code, name, "exec"), names)
    return names


@pytest.mark.slow
def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page("README.md")
    assert (tmp_path / "student" / "saved_model.pb").exists()


@pytest.mark.slow
def test_usage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page("docs/usage.md")
    assert names["method"].mhan is names["mhgd"].mhan
    assert len(names["distiller"].sensing_points) == 2
    assert names["images"].element_spec[0].images.shape[1:] == (28, 28, 1)
    assert (tmp_path / "run.keras").exists()
