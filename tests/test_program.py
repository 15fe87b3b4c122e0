"""Which processes count as programs of the package."""

import pytest

from keras_mhgd import _program


@pytest.mark.parametrize(
    ("first", "command", "started"),
    [
        ("/bin/keras-mhgd", "python /bin/keras-mhgd distill", True),
        ("-m", "python -m keras_mhgd distill", True),
        ("-m", "python -X dev -m keras_mhgd.training.distill", True),
        ("-m", "python -m keras_mhgds", False),
        ("-m", "python -m pytest tests", False),
        ("mine.py", "python mine.py -m keras_mhgd", False),
        ("-c", "python -c import\xa0keras_mhgd", False),
        ("", "python", False),
    ],
)
def test_programs_are_known_by_their_command(
    monkeypatch, first, command, started
):
    monkeypatch.delenv("KERAS_MHGD_PROGRAM", raising=False)
    monkeypatch.setattr("sys.argv", [first])
    monkeypatch.setattr("sys.orig_argv", command.split(" "))
    assert _program.is_started() == started
    monkeypatch.setenv("KERAS_MHGD_PROGRAM", "1")
    assert _program.is_started()
