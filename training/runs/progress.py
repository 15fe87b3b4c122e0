"""Shows how far a training is."""

import shutil
import sys
import time
from collections.abc import Mapping

import keras

_REDRAWN_EVERY = 0.1  # seconds
_WIDTH = 20  # of the bar, characters


class Progress(keras.callbacks.ProgbarLogger):
    """Shows a line for each epoch; in a terminal, a live bar until it ends.

    As a `ProgbarLogger`, it takes the place of Keras's bar. It is shown
    whatever the argument `verbose` of `fit` is.
    """

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._live = sys.stdout.isatty()

    def on_epoch_begin(self, epoch, logs=None):
        self._begin, self._drawn, self._logs = time.monotonic(), 0.0, {}
        self._title = f"Epoch {epoch + 1}/{self.epochs}"
        print(self._title, end="", flush=True)

    def on_train_batch_begin(self, batch, logs=None):
        # Not when a step ends: a callback may end the training there, with a
        # message on a line of its own.
        now = time.monotonic()
        if self._live and batch and now - self._drawn >= _REDRAWN_EVERY:
            self._drawn = now
            self._redraw(self._bar(batch, now - self._begin))

    def on_train_batch_end(self, batch, logs=None):
        self._logs = logs

    def on_epoch_end(self, epoch, logs=None):
        if self._live:
            self._redraw(self._title)
        seconds = time.monotonic() - self._begin
        print(f"  {seconds:.1f} s  {_values(logs)}", flush=True)

    def _bar(self, steps: int, seconds: float) -> str:
        done = _WIDTH * steps // self.target
        left = seconds / steps * (self.target - steps)
        return (
            f"{self._title} [{'#' * done}{'.' * (_WIDTH - done)}] "
            f"{steps}/{self.target}  {left:.0f} s left  {_values(self._logs)}"
        )

    def _redraw(self, text: str) -> None:
        """Replaces the line that the cursor is on."""
        columns = shutil.get_terminal_size().columns
        print(f"\r{text[: columns - 1]}\x1b[K", end="", flush=True)


def _values(logs: Mapping[str, float]) -> str:
    """Writes metrics, those of the test first."""
    names = sorted(logs, key=lambda name: not name.startswith("val_"))
    return "  ".join(f"{name} {logs[name]:.4g}" for name in names)
