"""Shows what several trainings print, and how far they are."""

import os
import sys
import threading
from multiprocessing.connection import Connection, wait
from typing import TextIO

from .progress import redraw, redrawn

_READ = 1 << 16  # bytes at a time


class Relay:
    """Prints the lines of several programs, each whole: a context.

    In a terminal, the last line shows the running programs, each with the line
    that it has not ended yet, such as the bar of an epoch. This line is away
    while another is printed, and it is gone when the context ends.
    """

    def __init__(self):
        self._live = False
        self._lock = threading.Lock()
        self._begun = {}  # lines that are not ended, by program

    def __enter__(self) -> "Relay":
        self._live = sys.stdout.isatty()
        return self

    def __exit__(self, *error) -> None:
        with self._lock:
            if self._live:
                redraw("")
            self._live = False

    def print(self, *lines: str, to: TextIO | None = None) -> None:
        """Prints lines above the last one.

        Args:
            *lines: The lines.
            to: Where to; `None` for the standard output.
        """
        with self._lock:
            if lines and self._live:
                redraw("")
            for line in lines:
                print(line, file=to, flush=True)
            self._draw()

    def _draw(self) -> None:
        if self._live:
            shown = self._begun.items()
            redraw("  ".join(f"{name} {line}" for name, line in shown))

    def follow(self, name: str, output: Connection, errors: Connection) -> None:
        """Prints what a program prints, until it ends.

        Args:
            name: Name of the program, printed before each line of its output.
            output: Connection with the program's standard output.
            errors: Connection with its standard error.
        """
        places = {output: (f"{name} | ", sys.stdout), errors: ("", sys.stderr)}
        rest = dict.fromkeys(places, b"")
        while rest:
            for source in wait(rest):
                part = os.read(source.fileno(), _READ)
                *lines, begun = (rest.pop(source) + part).split(b"\n")
                if part:
                    # Earlier redraws of the line are of no use.
                    rest[source] = begun[max(begun.rfind(b"\r"), 0) :]
                elif begun:
                    lines.append(begun)
                with self._lock:
                    self._begun[name] = _text(rest.get(output, b""))
                before, to = places[source]
                self.print(*(before + _text(line) for line in lines), to=to)
        with self._lock:
            del self._begun[name]
        self.print()


def _text(line: bytes) -> str:
    return redrawn(line.decode(errors="replace"))
