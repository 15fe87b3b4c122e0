"""What a comparison shows of its trainings, in a terminal and elsewhere."""

import contextlib
import functools
import io
import multiprocessing
import os
import pty
import re
import subprocess
import termios
import threading
import time

import pytest

from tests.training.runs import command
from training.runs.relay import Relay


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen(text):
    """The lines that a terminal shows, each without the spaces at its end."""
    lines, column = [""], 0
    for part in re.findall(r"\r|\n|\x1b\[K|[^\r\n\x1b]+", text):
        if part == "\n":
            lines.append("")
        if part in "\r\n":
            column = 0
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            end = column + len(part)
            lines[-1] = lines[-1][:column] + part + lines[-1][end:]
            column = end
    return [line.rstrip() for line in lines]


class Program:
    """Stands for a program: the ends of its pipes, which a relay follows."""

    def __init__(self, relay, name):
        (output, self.output), (errors, self.errors) = (
            multiprocessing.Pipe(duplex=False) for _ in range(2)
        )
        self._thread = threading.Thread(
            target=relay.follow, args=(name, output, errors), daemon=True
        )
        self._thread.start()

    def says(self, text):
        os.write(self.output.fileno(), text)

    def fails(self, text):
        os.write(self.errors.fileno(), text)

    def ends(self):
        self.output.close()
        self.errors.close()
        self._thread.join()


def test_a_terminal_shows_what_runs_below_all_lines(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "44")

    def shows(*lines):
        end = time.monotonic() + 60
        while (found := screen(terminal.getvalue())) != [*lines]:
            assert time.monotonic() < end, found
            time.sleep(0.01)

    with Relay() as relay:
        relay.print("$ a")
        a, b = Program(relay, "a"), Program(relay, "b")
        lines = ["$ a"]
        b.says(b"Epoch 3/9\rEpoch 3/9, 20 s left\x1b[K")
        shows(*lines, "b Epoch 3/9, 20 s left")
        a.says(b"Data\nEpoch 1/2\rEpoch 1/2, 2 min left\x1b[K")
        lines.append("a | Data")
        # A line that wraps could not be erased: this one is cut.
        shows(*lines, "b Epoch 3/9, 20 s left  a Epoch 1/2, 2 min")
        a.fails(b"Traceback\nError")
        lines.append("Traceback")
        shows(*lines, "b Epoch 3/9, 20 s left  a Epoch 1/2, 2 min")
        a.fails(b": it\n")
        lines.append("Error: it")
        shows(*lines, "b Epoch 3/9, 20 s left  a Epoch 1/2, 2 min")
        b.says(b"\rEpoch 3/9\x1b[K  1.0 s  loss 2\n")
        lines.append("b | Epoch 3/9  1.0 s  loss 2")
        shows(*lines, "b   a Epoch 1/2, 2 min left")
        a.ends()
        lines.append("a | Epoch 1/2, 2 min left")
        shows(*lines, "b")
        b.says(b"Epoch 4/9")
        shows(*lines, "b Epoch 4/9")
    # Whatever ended the context.
    assert screen(terminal.getvalue()) == [*lines, ""]
    b.ends()


def test_elsewhere_there_are_lines_alone(capsys):
    with Relay() as relay:
        program = Program(relay, "a")
        relay.print("$ a")
        program.says(b"Epoch 1/1\rEpoch 1/1, 2 s left\x1b[K")
        program.fails(b"Error: it\n")
        program.says(b"\rEpoch 1/1\x1b[K  1.0 s\n\nSIGTERM: \xff\r\n")
        program.ends()
    output, errors = capsys.readouterr()
    assert output == "$ a\na | Epoch 1/1  1.0 s\na | \na | SIGTERM: \ufffd\n"
    assert errors == "Error: it\n"


@pytest.mark.slow
def test_a_comparison_in_a_terminal(folder, data, teacher):
    """One training fails, and the user ends the other."""
    (folder / "wrong.toml").write_text(
        '[[way]]\nname = "wrong"\nmethod = "mhgd"\n'
        'sensing_points = ["a", "b"]\n'
    )
    arguments = [*data, f"--teacher={teacher}", "--student=resnet_small"]
    arguments += ["--methods=student", f"--ways={folder}/wrong.toml"]
    arguments += ["--epochs=9999", "--trials=1", "--jobs=2"]
    terminal, end = pty.openpty()
    modes = termios.tcgetattr(end)
    modes[3] &= ~termios.ECHO  # the key itself is no output
    termios.tcsetattr(end, termios.TCSANOW, modes)
    process = subprocess.Popen(
        command("compare", *arguments, f"--run={folder}/shown"),
        preexec_fn=functools.partial(os.login_tty, end),
    )
    os.close(end)
    text, told = "", False
    try:
        # Reading from a terminal that nobody has open is an error.
        with contextlib.suppress(OSError):
            while part := os.read(terminal, 1 << 16):
                text += part.decode()
                failed = "Error: " in text
                if failed and "student_0 Epoch 5/9999, " in text and not told:
                    told = True
                    os.write(terminal, b"\x03")  # Ctrl-C
        assert process.wait(60) == 75, text
    finally:
        process.kill()
        os.close(terminal)
    lines = screen(text)
    # Without a trace of the last line, with which the names begin.
    own = r"\$ python -m |(student|wrong)_0 \||Error: A sensing point .*\]\.|$"
    assert [line for line in lines if not re.match(own, line)] == []
    epochs = [line for line in lines if "| Epoch " in line]
    for number, line in enumerate(epochs[:4], start=1):  # it ended the next
        assert re.match(
            rf"student_0 \| Epoch {number}/9999  \d+\.\d s  val_acc", line
        )
    assert "student_0 | SIGTERM: ends once the state is saved." in lines
    saved = "The state is saved. The same command goes on from here."
    assert f"student_0 | {saved}" in lines
