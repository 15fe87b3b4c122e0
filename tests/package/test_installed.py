"""What is in `dist`, in a fresh environment; `make test-package` runs this."""

import os
import pathlib
import re
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DEMO = ["--epochs=1", "--preparation_epochs=1", "--subset=200"]


@pytest.fixture(scope="module")
def wheel():
    (path,) = (ROOT / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The folder of an environment's programs, the wheel's among them."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    command = [folder / "bin" / "pip", "install", "--quiet", "--no-compile"]
    lock = ROOT / "requirements.lock"
    subprocess.run([*command, "--constraint", lock, wheel], check=True)
    return folder / "bin"


def run(program, *arguments, folder, fails=False):
    """Runs a program in a folder; gives what it printed."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON")
    }
    done = subprocess.run(
        [program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=variables,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def test_files_are_in_the_package(programs, tmp_path):
    shown = run(programs / "pip", "show", "-f", "keras_mhgd", folder=tmp_path)
    _, _, text = shown.partition("\nFiles:\n")
    files = [line.strip() for line in text.splitlines()]
    assert "keras_mhgd/training/demo.py" in files
    others = {each for each in files if not each.startswith("keras_mhgd")}
    assert others == {"../../../bin/keras-mhgd"}
    for name in ("training", "saved_models", "benchmarks", "tests"):
        code = f"import {name}"
        said = run(programs / "python", "-c", code, folder=tmp_path, fails=True)
        assert f"No module named '{name}'" in said


def test_requirements_fit_each_other(programs, tmp_path):
    assert "No broken" in run(programs / "pip", "check", folder=tmp_path)


def test_the_source_distribution_installs_the_same(programs, wheel, tmp_path):
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    folder = tmp_path / "installed"
    options = "--quiet --no-compile --no-deps --no-index --no-build-isolation"
    command = [programs / "pip", "install", *options.split()]
    run(*command, f"--target={folder}", sdist, folder=tmp_path)
    with zipfile.ZipFile(wheel) as file:
        names = {each for each in file.namelist() if "dist-info" not in each}
        expected = {name: file.read(name) for name in names}
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (folder / "keras_mhgd").rglob("*")
        if path.is_file()
    }
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_programs_where_nothing_else_is(programs, tmp_path):
    """From a comparison and a search to an exported file."""

    def said(program, *flags):
        return run(programs / "keras-mhgd", program, *flags, folder=tmp_path)

    pair = ["--teacher=vgg_small_glyphs", "--student=vgg_thin"]
    flags = [*pair, "--subset=200", "--epochs=1", "--trials=1"]
    compared = said(
        "compare", *flags, "--methods=student,soft_logits", "--run=compared"
    )
    assert "$ keras-mhgd distill --preparation_dir=compared" in compared
    assert "Written to compared/report.html." in compared
    said("tune", *flags, "--methods=soft_logits", "--run=search")
    alone = "--alone=compared/student_0"
    said("export", "--model=search/best", alone, "--out=exported")
    for path in ("exported/model.tflite", "exported/saved_model"):
        # Nothing of a runtime's log comes first.
        assert re.fullmatch(
            f"{path}: accuracy .* on 5000 test images of glyphs.\n",
            said("evaluate", f"--model={path}"),
        )


def test_commands(programs, tmp_path):
    """In a folder of a user who has a package `training` of their own."""
    shadow = tmp_path / "training"
    shadow.mkdir()
    (shadow / "__init__.py").write_text("raise ImportError('a user\\'s own')")
    command = programs / "keras-mhgd"
    module = [programs / "python", "-m", "keras_mhgd"]
    # Nothing of TensorFlow's log comes first.
    shown = run(command, folder=tmp_path)
    assert shown.startswith("usage: keras-mhgd <command>")
    shown = run(*module, folder=tmp_path)
    assert shown.startswith("usage: python -m keras_mhgd <command>")
    text = run(*module, "distill", "--help", folder=tmp_path)
    assert "\npython -m keras_mhgd distill --dataset=glyphs" in text
    output = run(command, "demo", *DEMO, folder=tmp_path)
    assert "$ keras-mhgd distill --preparation_dir=runs" in output
    exported = tmp_path / "saved_models" / "demo" / "model.tflite"
    output = run(*module, "evaluate", f"--model={exported}", folder=tmp_path)
    assert "on 5000 test images of glyphs" in output

    # Ends a trained run once more, in the checkout.
    demo = tmp_path / "runs" / "demo"
    (demo / "alone_0" / "result.json").unlink()
    folders = [f"--run={demo}", f"--out={tmp_path / 'out'}"]
    output = run(
        sys.executable, "-m", "training.demo", *DEMO, *folders, folder=ROOT
    )
    assert output.count("$ python -m training.") == 1
    assert f"Resuming {demo}/alone_0 after epoch 1." in output
