"""Signals that end a program, and what is saved before it ends."""

import contextlib
import os
import signal
from types import FrameType

import keras

from keras_mhgd.callbacks import Checkpoint
from keras_mhgd.distribution import replicas

EXIT_CODE = 75
"""Of a program that was told to end and goes on when it is run again."""

_SIGNALS = signal.SIGTERM, signal.SIGINT


class Interruption:
    """Ends the program in order on SIGTERM or SIGINT, as a context.

    While a training runs that has the `callback`, its checkpoint is saved
    after the step at hand, or with the epoch if that is being tested. At any
    other time, and on a second SIGINT, the program ends at once. Either way
    its exit code is 75. Of several workers, all end when one is told to.
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
        text = f"{signal.Signals(number).name}: ends once the state is saved.\n"
        # Not print: the signal may have come while it writes.
        with contextlib.suppress(OSError):
            os.write(1, text.encode())

    def callback(self, checkpoint: Checkpoint) -> keras.callbacks.Callback:
        """Makes the callback of a training; it comes after `checkpoint`."""
        return _Ending(self, checkpoint)

    def _agree(self) -> bool:
        self._asked = replicas.any_worker(self._asked)
        return self._asked

    def _leave(self) -> None:
        if self._agree():
            print("The state is saved. The same command goes on from here.")
            replicas.leave()
            raise SystemExit(EXIT_CODE)


class _Ending(keras.callbacks.Callback):
    def __init__(self, interruption: Interruption, checkpoint: Checkpoint):
        super().__init__()
        self._interruption = interruption
        self._checkpoint = checkpoint

    def on_train_begin(self, logs=None):
        # TensorFlow takes SIGTERM to itself when it connects workers.
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
