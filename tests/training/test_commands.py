"""The programs by their names, and what they say of themselves."""

import pathlib

import pytest

from tests.training.launcher import launch
from training import commands
from training.saved.trained import network_file

FOLDER = pathlib.Path(commands.__file__).parent
SHIPPED = "saved_models/teachers/vgg_small_glyphs.keras"


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


def test_shipped_teacher_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert network_file(SHIPPED) == FOLDER.parent / SHIPPED
    # A file of the user's comes first, and only teachers are looked for.
    own = tmp_path / SHIPPED
    own.parent.mkdir(parents=True)
    own.touch()
    assert network_file(SHIPPED).resolve() == own
    for other in ("saved_models/teachers/mine.keras", "saved_models/x.keras"):
        assert network_file(other) == pathlib.Path(other)
