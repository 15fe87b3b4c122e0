"""Shows how far a training is."""

import shutil
import sys
import time
from collections.abc import Mapping

import keras

_REDRAWN_EVERY = 0.1  # seconds
_WIDTH = 20  # of the bar, characters
_ERASE = "\x1b[K"  # what is right of the cursor

_relayed = False


def relayed() -> None:
    """Makes the bars of this process short: another process shows them.

    What the standard output has after a line's last carriage return is then
    the state of the line, whether or not the line has ended.
    """
    global _relayed
    _relayed = True


def redraw(text: str) -> None:
    """Replaces the line that the cursor is on."""
    columns = shutil.get_terminal_size().columns
    print(f"\r{text[: columns - 1]}{_ERASE}", end="", flush=True)


def redrawn(line: str) -> str:
    """Gives what a terminal shows of a line after its redraws."""
    return line.rstrip("\r").rpartition("\r")[2].replace(_ERASE, "")


class Progress(keras.callbacks.ProgbarLogger):
    """Shows a line for each epoch; in a terminal, a live bar until it ends.

    As a `ProgbarLogger`, it takes the place of Keras's bar. It is shown
    whatever the argument `verbose` of `fit` is.
    """

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._live = _relayed or sys.stdout.isatty()
        self._first = None

    def on_epoch_begin(self, epoch, logs=None):
        self._begin, self._drawn, self._logs = time.monotonic(), 0.0, {}
        self._first = self._first or (epoch, self._begin)
        self._epoch = epoch
        self._title = f"Epoch {epoch + 1}/{self.epochs}"
        print(self._title, end="", flush=True)

    def on_train_batch_begin(self, batch, logs=None):
        # Not when a step ends: a callback may end the training there, with a
        # message on a line of its own.
        now = time.monotonic()
        if self._live and batch and now - self._drawn >= _REDRAWN_EVERY:
            self._drawn = now
            redraw(self._state(batch) if _relayed else self._bar(batch))

    def on_train_batch_end(self, batch, logs=None):
        self._logs = logs

    def on_epoch_end(self, epoch, logs=None):
        if self._live:
            redraw(self._title)
        seconds = time.monotonic() - self._begin
        print(f"  {seconds:.1f} s  {_values(logs)}", flush=True)

    def _bar(self, steps: int) -> str:
        """Draws the epoch."""
        done = _WIDTH * steps // self.target
        left = _left(self._begin, steps, self.target)
        return (
            f"{self._title} [{'#' * done}{'.' * (_WIDTH - done)}] "
            f"{steps}/{self.target}  {left}  {_values(self._logs)}"
        )

    def _state(self, steps: int) -> str:
        """Tells in short how far all epochs are."""
        first, begin = self._first
        done = self._epoch - first + steps / self.target
        return f"{self._title}, {_left(begin, done, self.epochs - first)}"


def _left(begin: float, done: float, total: float) -> str:
    """Tells the time that is left of a work that began at `begin`."""
    seconds = (time.monotonic() - begin) / done * (total - done)
    for name, unit in (("h", 3600), ("min", 60)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name} left"
    return f"{seconds:.0f} s left"


def _values(logs: Mapping[str, float]) -> str:
    """Writes metrics, those of the test first."""
    names = sorted(logs, key=lambda name: not name.startswith("val_"))
    return "  ".join(f"{name} {logs[name]:.4g}" for name in names)
