"""The programs by their names, and what they say of themselves."""

import pathlib

import pytest

from tests.training.launcher import launch
from training import commands
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
def test_help_names_the_command_and_all_its_flags(program):
    _, output = launch(f"training.{program}", "--help")
    assert f"\npython -m training.{program} --dataset=glyphs" in output
    assert f"\npython -m training.{program}:\n" in output
    for flag in ("--epochs", "--dataset", "--[no]fused"):
        assert f"\n  {flag}:" in output
    assert "%s" not in output


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
    with pytest.raises(FileNotFoundError, match=f"{PRESET}.* no vgg_small"):
        load_network("vgg_small")
