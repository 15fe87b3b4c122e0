"""The three steps of CONTRIBUTING.md, followed to the letter."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import methods
from tests.methods import test_contract as contract

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def steps():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def gram(steps, tmp_path, monkeypatch):
    """The module of the first step, registered as the second one says."""
    path = tmp_path / "gram.py"
    path.write_text(steps[0])
    spec = importlib.util.spec_from_file_location("gram", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    registered = eval(f"{{{steps[1]}}}", vars(module))
    for name, method in registered.items():
        monkeypatch.setitem(methods._METHODS, name, method)
    return module


@pytest.mark.slow
def test_the_contract_holds(gram, small_net, task, images, tmp_path):
    name = "gram"
    assert name in methods.names()
    contract.test_name_class_and_configuration_give_one_number(name)
    contract.test_config_round_trip(name)
    contract.test_declares_what_it_reads(name)
    contract.test_needs_so_many_sensing_points(name, small_net)
    contract.test_equality_is_a_minimum(name)
    contract.test_the_order_of_samples_does_not_matter(name)
    contract.test_gradient_agrees_with_differences(name)
    contract.test_refuses_a_negative_weight(name)
    contract.test_trains_saves_and_loads(
        name, small_net, task, images, tmp_path
    )


def test_the_third_step_passes(steps, gram):
    names = {"tf": tf, **vars(gram)}
    exec(steps[2], names)
    names["test_by_hand"]()


def test_it_joins_other_methods(gram, small_net, task, images):
    model = keras_mhgd.Distiller(
        small_net("student"), small_net("teacher"), "gram+soft_logits"
    )
    model.compile(**task())
    history = model.fit(*images, verbose=0).history
    assert np.isfinite(history["gram"]).all()
