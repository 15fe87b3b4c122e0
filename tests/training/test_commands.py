"""The programs by their names, and what they say of themselves."""

import pathlib
import re

import pytest
import tensorflow as tf
from absl import app

from tests.training.launcher import launch
from training import commands, options
from training.saved.trained import load_network, network_file

FOLDER = pathlib.Path(commands.__file__).parent
ROOT = FOLDER.parent
PRESET = "vgg_small_glyphs"


def run(monkeypatch, *arguments, file="/bin/keras-mhgd"):
    monkeypatch.setattr("sys.argv", [file, *arguments])
    commands.main()


def test_every_program_is_a_command():
    found = {
        file.stem
        for file in FOLDER.glob("*.py")
        if 'if __name__ == "__main__":' in file.read_text()
    }
    assert {*commands.PROGRAMS} == found


def test_overview_has_a_line_for_each_program(monkeypatch, capsys):
    run(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    for program in commands.PROGRAMS:
        (line,) = [each for each in lines if each.split()[:1] == [program]]
        assert line.endswith(".")


def test_unknown_command(monkeypatch):
    text = r"must be one of train, .* Received: trian\. Run .* for what they do"
    with pytest.raises(SystemExit, match=text):
        run(monkeypatch, "trian")


@pytest.mark.parametrize("program", ["train", "tune"])
def test_full_help_names_the_command_and_all_its_flags(program):
    code, output = launch(f"training.{program}", "--helpfull")
    assert code == 0
    assert f"\npython -m training.{program} --dataset=glyphs" in output
    assert f"\npython -m training.{program}:\n" in output
    for flag in ("--epochs", "--dataset", "--[no]fused"):
        assert f"\n  {flag}:" in output
    assert "%s" not in output


@pytest.mark.parametrize("program", commands.PROGRAMS)
def test_help_is_a_screen_with_all_flags(program):
    """Of the program and of `options`, each named once, in 45 lines of 100.

    A flag with a fixed set of values has a line, which begins with them.
    """
    command = f"python -m training.{program}"
    _, full = launch(f"training.{program}", "--helpfull")
    _, _, own = full.partition(f"\n{command}:\n")
    own, _, _ = own.partition("\n\n")
    flags = re.findall(r"^  (?:-\w,)?(--\S+):", own, re.MULTILINE)
    limited = re.findall(r"^  (--\S+): (<\S+>):", own, re.MULTILINE)
    for switch in ("--help", "--helpshort"):
        code, output = launch(f"training.{program}", switch)
        assert code == 0
        lines = output.splitlines()
        assert len(lines) <= 45 and max(map(len, lines)) <= 100, output
        assert f"\n{command}" in output and "%s" not in output
        listed = [each for each in output.split() if each in flags]
        assert set(listed) == set(flags)
        described = re.findall(r"^  (--\S+)", output, re.MULTILINE)
        assert len(described) == len(set(described))
        for flag, values in limited:
            assert f"\n  {flag:<24}{values}: " in output


def test_help_tells_the_group_meaning_and_default_of_a_flag():
    _, output = launch("training.distill", "--help")
    groups = re.findall(r"^(\w[\w ]*):$", output, re.MULTILINE)
    names = "data", "networks and methods", "training", "devices", "output"
    assert groups == [*names]
    _, _, training = output.partition("\ntraining:\n")
    line = "--epochs                Passes over the training samples (100)"
    assert training.startswith(f"  {line}\n")


def test_wrong_usage_is_told_without_all_flags():
    code, output = launch(
        "training.distill", "--teacher=a", "--student=b", "--run=c",
        "--strategy=multi_worker",
    )  # fmt: skip
    assert code == 1 and "--epochs" not in output
    assert "needs the environment variable TF_CONFIG" in output
    assert "Received: an environment without it. Set it on each" in output
    assert output.endswith("See python -m training.distill --help.\n")


def test_a_missing_tpu_is_told(monkeypatch):
    def connect():
        raise ValueError("no name")

    resolver = tf.distribute.cluster_resolver.TPUClusterResolver
    monkeypatch.setattr(resolver, "connect", connect)
    text = r"needs a TPU, .*Received: none \(no name\)\. Set the variable"
    with pytest.raises(app.UsageError, match=text):
        options._tpu()


def test_an_unknown_flag_is_told():
    code, output = launch("training.train", "--epoch=1")
    assert code == 1
    assert "Unknown command line flag 'epoch'. Did you mean: epochs" in output


def test_a_mistake_is_told_in_one_line():
    flags = ["--student=vgg_thin", "--run=unused", "--method=soft_logit"]
    flags = ["training.distill", "--teacher=vgg_small_glyphs", *flags]
    code, output = launch(*flags)
    assert code == 1 and output.startswith("Error: `method` must be one of")
    assert output.endswith("Did you mean 'soft_logits'?\n")
    assert output.count("\n") == 1
    code, output = launch(*flags, "--verbosity=0")
    assert code == 1 and "\nValueError: `method` must be one of" in output
    assert "Traceback" in output


def test_errors_that_the_package_does_not_raise_keep_their_traceback():
    code = compile("int('a')\n", commands.__file__, "exec")
    for mistake, told in (
        (lambda: load_network("vgg_smal_glyphs"), True),
        (lambda: exec(code, {"__name__": "training.commands"}), False),
        (lambda: int("a"), False),
    ):
        with pytest.raises((ValueError, OSError)) as error:
            mistake()
        assert commands._is_told(error.value) == told


def test_presets_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "saved_models" / "teachers" / f"{PRESET}.keras"
    assert network_file(PRESET) == shipped
    # A file or a run of the user's comes first.
    own = tmp_path / PRESET
    own.mkdir()
    (own / "config.json").touch()
    assert network_file(PRESET) == pathlib.Path(PRESET, "last.keras")
    for other in ("saved_models/teachers/mine.keras", "vgg_small"):
        assert network_file(other) == pathlib.Path(other)
    near = f"{PRESET}.* Received: vgg_small, which is not there. "
    near += f"Did you mean '{PRESET}'. Correct the path, or train"
    with pytest.raises(FileNotFoundError, match=near):
        load_network("vgg_small")
