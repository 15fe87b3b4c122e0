"""What is shown of a training, in a terminal and elsewhere."""

import io
import os
import re
import signal

import keras
import pytest

from keras_mhgd.callbacks import Checkpoint
from training.runs import progress
from training.runs.interruption import Interruption
from training.runs.progress import Progress

LINE = r"Epoch {}/2  \d+\.\d s  val_accuracy \S+  val_loss \S+  accuracy .*"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def train(distiller, images):
    def run(verbose, *others):
        distiller("soft_logits").fit(
            *images,
            batch_size=8,
            epochs=2,
            verbose=verbose,
            validation_data=images,
            callbacks=[Progress(), *others],
        )

    return run


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_an_epoch_has_one_line(train, capsys, verbose):
    """And no bar of Keras beside it."""
    train(verbose)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, start=1):
        assert re.fullmatch(LINE.format(number), line)


def test_a_terminal_has_a_bar_until_the_epoch_ends(train, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr(progress, "_REDRAWN_EVERY", 0)
    monkeypatch.setenv("COLUMNS", "60")
    train(0)
    lines = terminal.getvalue().split("\n")
    assert lines.pop() == "" and len(lines) == 2
    for number, line in enumerate(lines, start=1):
        begin, *bars, end = line.replace("\x1b[K", "").split("\r")
        assert begin == f"Epoch {number}/2"
        bar = re.compile(r"Epoch ./2 \[(#*)(\.*)\] (\d)/4  \d+ s left  acc")
        found = [bar.match(each).groups() for each in bars]
        assert [(len(a), len(b), steps) for a, b, steps in found] == [
            (5, 15, "1"),
            (10, 10, "2"),
            (15, 5, "3"),
        ]
        assert all(len(each) < 60 for each in bars)
        assert re.fullmatch(LINE.format(number), end)


class Clock(keras.callbacks.Callback):
    """Tells the time as if a step took two minutes, and nothing else any."""

    now = 0

    def on_train_batch_end(self, batch, logs=None):
        self.now += 120

    def monotonic(self):
        return self.now


def test_a_relayed_line_tells_what_all_epochs_need(train, monkeypatch):
    """To another process, which shows it in a terminal or not."""
    output, clock = io.StringIO(), Clock()
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr(progress, "_relayed", True)
    monkeypatch.setattr(progress, "time", clock)
    train(0, clock)
    lines = output.getvalue().split("\n")
    assert lines.pop() == "" and len(lines) == 2
    for number, line, left in zip(
        (1, 2),
        lines,
        (["14 min", "12 min", "10 min"], ["6 min", "4 min", "2 min"]),
        strict=True,
    ):
        begin, *states, _ = line.replace("\x1b[K", "").split("\r")
        assert begin == f"Epoch {number}/2"
        assert states == [f"{begin}, {each} left" for each in left]
        assert re.fullmatch(LINE.format(number), progress.redrawn(line))


class Told(keras.callbacks.Callback):
    """Tells this process to end before the second epoch."""

    def on_epoch_end(self, epoch, logs=None):
        os.kill(os.getpid(), signal.SIGTERM)


def test_last_words_have_lines_of_their_own(distiller, images, capfd, tmp_path):
    """Also if an epoch begins after the signal."""
    model = distiller("soft_logits")
    checkpoint = Checkpoint(tmp_path, model.student.variables)
    with Interruption() as interruption, pytest.raises(SystemExit):
        model.fit(
            *images,
            batch_size=8,
            epochs=2,
            callbacks=[
                Progress(),
                checkpoint,
                interruption.callback(checkpoint),
                Told(),
            ],
        )
    lines = capfd.readouterr().out.splitlines()
    assert "SIGTERM: ends once the state is saved." in lines
    assert "Epoch 2/2" in lines
    assert "The state is saved. The same command goes on from here." in lines
