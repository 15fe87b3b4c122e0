"""Saves a training's state when a signal ends the program."""

import contextlib
import os
import signal
from types import FrameType

import keras

from keras_mhgd.callbacks import Checkpoint
from keras_mhgd.distribution import replicas

EXIT_CODE = 75
"""Exit code of a program that a signal ended and that can be resumed."""

_SIGNALS = signal.SIGTERM, signal.SIGINT


class Interruption:
    """Saves the state and ends the program on SIGTERM or SIGINT: a context.

    While a training with the `callback` runs, its checkpoint is saved after
    the current step, and the program ends. During the test after an epoch, the
    program ends once the test is done and the epoch is saved. At any other
    time, and on a second SIGINT, the program ends at once. The exit code is
    always 75. With several workers, a signal to one of them ends all.
    """

    def __init__(self):
        self._trains = False
        self._asked = False

    def __enter__(self) -> "Interruption":
        self._before = self._listen()
        return self

    def _listen(self) -> list:
        return [signal.signal(each, self._end) for each in _SIGNALS]

    def __exit__(self, *error) -> None:
        for each, handler in zip(_SIGNALS, self._before, strict=True):
            signal.signal(each, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if not self._trains or (self._asked and number == signal.SIGINT):
            raise SystemExit(EXIT_CODE)
        self._asked = True
        # On a line of its own: progress leaves its line open.
        name = signal.Signals(number).name
        text = f"\n{name}: ends once the state is saved.\n"
        # `print` would fail if the signal interrupted another `print`.
        with contextlib.suppress(OSError):
            os.write(1, text.encode())

    def callback(self, checkpoint: Checkpoint) -> keras.callbacks.Callback:
        """Makes a training's callback, to be listed after `checkpoint`."""
        return _Ending(self, checkpoint)

    def _agree(self) -> bool:
        self._asked = replicas.any_worker(self._asked)
        return self._asked

    def _leave(self) -> None:
        if self._agree():
            # Progress may have opened another line since the signal.
            print("\nThe state is saved. The same command goes on from here.")
            replicas.leave()
            raise SystemExit(EXIT_CODE)


class _Ending(keras.callbacks.Callback):
    def __init__(self, interruption: Interruption, checkpoint: Checkpoint):
        super().__init__()
        self._interruption = interruption
        self._checkpoint = checkpoint

    def on_train_begin(self, logs=None):
        # TensorFlow replaces the handler of SIGTERM when it connects workers.
        self._interruption._listen()
        self._interruption._trains = True

    def on_train_batch_end(self, batch, logs=None):
        if self._checkpoint.epoch_ends(batch):
            return
        if self._interruption._agree():
            self._checkpoint.save(*self._checkpoint.position)
            self._interruption._leave()

    def on_epoch_end(self, epoch, logs=None):
        self._interruption._leave()

    def on_train_end(self, logs=None):
        self._interruption._trains = False
