"""Which processes count as programs of the package, and what they hide."""

import os

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


@pytest.mark.parametrize("level", ["0", "3"])
def test_log_lines_are_hidden_unless_wanted(monkeypatch, capfd, level):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    noise = (
        "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"
        "I0000 00:00:00 cpu_feature_guard.cc: This binary\n"
        "fully_quantize: 0, inference_type: 6\n"
    )
    told = "INFO: of another kind\n"
    with _program.without_log():
        os.write(2, f"{noise}{told}".encode())
    os.write(2, b"after\n")
    shown = told if level == "3" else f"{noise}{told}"
    assert capfd.readouterr().err == f"{shown}after\n"
