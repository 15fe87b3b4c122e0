"""What a source distribution and a wheel hold; `tests/package` runs one."""

import configparser
import email
import json
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import keras_mhgd

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
DEPENDENCIES = {
    "keras",
    "tensorflow",
    "tensorflow-datasets",
    "keras-tuner",
    "absl-py",
    "tensorboard",
}
MODELS = ("saved_models/teachers", "saved_models/students")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that is made of a source distribution, without a network."""
    folder = tmp_path_factory.mktemp("packages")
    source = folder / "source"
    for name in ("keras_mhgd", "training", *MODELS):
        shutil.copytree(
            ROOT / name,
            source / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, source)
    for name in ("presets.json", "README.md"):
        shutil.copy(ROOT / "saved_models" / name, source / "saved_models")
    # What a checkout may hold beside the files of the repository.
    (source / "saved_models" / "student.keras").touch()
    code = "import sys; from setuptools import build_meta as backend; "
    code += "backend.build_sdist(sys.argv[1])"
    _call([sys.executable, "-c", code, folder], cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index"]
    pip += ["--no-build-isolation", "--wheel-dir", folder, sdist]
    _call(pip, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def _call(command, **options):
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert done.returncode == 0, done.stdout


def files(folder, pattern="*"):
    return {
        path.relative_to(ROOT / folder).as_posix()
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file() and path.suffix != ".pyc"
    }


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    assert held == {
        *(f"keras_mhgd/{name}" for name in files("keras_mhgd")),
        *(f"keras_mhgd/training/{name}" for name in files("training")),
        *(
            f"keras_mhgd/{folder}/{name}"
            for folder in MODELS
            for name in files(folder)
        ),
        "keras_mhgd/saved_models/presets.json",
        "keras_mhgd/saved_models/README.md",
    }
    assert {"keras_mhgd/py.typed", "keras_mhgd/__main__.py"} <= held
    presets = json.loads((ROOT / "saved_models" / "presets.json").read_text())
    assert held >= {
        f"keras_mhgd/saved_models/{preset['file']}"
        for preset in presets.values()
    }
    version = keras_mhgd.__version__
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"keras_mhgd", f"keras_mhgd-{version}.dist-info"}


def test_wheel_describes_itself(wheel):
    archive = zipfile.ZipFile(wheel)
    folder = f"keras_mhgd-{keras_mhgd.__version__}.dist-info"
    described = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
    assert described["Version"] == keras_mhgd.__version__
    assert described["Requires-Python"] == ">=3.11"
    needed = {
        re.match(r"[\w-]+", each)[0]
        for each in described.get_all("Requires-Dist")
        if "extra ==" not in each
    }
    assert needed >= DEPENDENCIES
    extras = {"onnx", "hub", "glyphs", "torch"}
    assert extras <= set(described.get_all("Provides-Extra"))
    for key in ("Project-URL", "Classifier", "Keywords", "Summary"):
        assert described.get_all(key)
    licences = {"LICENSE", "keras_mhgd/data/languages40.md"}
    assert set(described.get_all("License-File")) == licences
    scripts = configparser.ConfigParser()
    scripts.read_string(archive.read(f"{folder}/entry_points.txt").decode())
    assert dict(scripts["console_scripts"]) == {
        "keras-mhgd": "keras_mhgd.training.commands:main"
    }


def test_one_version_number():
    version = keras_mhgd.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == version


def test_readme_is_two_screens():
    """Each of 45 lines with 150 characters."""
    text = (ROOT / "README.md").read_text()
    shown = sum(-(-len(line) // 150) or 1 for line in text.splitlines())
    assert shown <= 90
    assert len(text.split()) <= 750
