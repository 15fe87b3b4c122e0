"""The trained networks that come with the package."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import keras_mhgd
from keras_mhgd import presets

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("name", presets.names())
def test_network_is_as_described(name):
    preset = presets.describe(name)
    dataset = keras_mhgd.data.load(preset.dataset)
    network = presets.load(name)
    assert network.name == preset.network
    assert network.count_params() == preset.parameters
    outputs = np.concatenate(
        [
            network(inputs, training=False)
            for inputs, _ in dataset.test(batch_size=500)
        ]
    )
    accuracy = (outputs.argmax(axis=-1) == dataset.y_test).mean()
    # Processors round differently: a few of thousands of answers change.
    assert accuracy == pytest.approx(preset.accuracy, abs=1e-3)
    assert preset.teacher is None or preset.teacher in presets.names()


@pytest.mark.parametrize("name", presets.names())
def test_card_says_what_the_description_says(name):
    preset = presets.describe(name)
    cards = (ROOT / "saved_models" / "README.md").read_text()
    _, _, card = cards.partition(f"\n## {name}\n")
    card = " ".join(card.partition("\n## ")[0].replace("\\\n", "").split())
    parameters = f"{preset.parameters:,}".replace(",", " ")
    for text in (
        preset.description,
        f"{parameters} parameters",
        f"{100 * preset.accuracy:.2f} %",
        f"python -m training.{preset.command}",
    ):
        assert text in card


def test_every_file_is_described():
    described = {presets.describe(name).file for name in presets.names()}
    assert described == set((ROOT / "saved_models").glob("*s/*.keras"))


def test_unknown_name():
    with pytest.raises(ValueError, match="`preset` must be one of .* Did you"):
        presets.load("vgg_small_glyph")


def test_changed_file_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "saved_models"
    shutil.copytree(ROOT / "saved_models" / "teachers", folder / "teachers")
    shutil.copy(ROOT / "saved_models" / "presets.json", folder)
    monkeypatch.setattr(presets, "_folder", lambda: folder)
    name, preset = next(
        iter(json.loads((folder / "presets.json").read_text()).items())
    )
    assert presets.checked_file(name) == folder / preset["file"]
    with open(folder / preset["file"], "ab") as file:
        file.write(b"x")
    for use in (presets.load, presets.checked_file):
        with pytest.raises(ValueError, match="must have the SHA-256"):
            use(name)
