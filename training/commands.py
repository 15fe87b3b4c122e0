"""Runs programs by their names, and names them as their user does.

In a checkout the programs are `python -m training.<program>`. An installed
package has the same files as `keras_mhgd.training`, and the programs are
`keras-mhgd <program>` or `python -m keras_mhgd <program>`.
"""

import ast
import pathlib
import runpy
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

PROGRAMS = (
    "train",
    "distill",
    "compare",
    "tune",
    "evaluate",
    "export",
    "demo",
    "make_glyphs",
    "make_languages",
)

_prefix = "python -m training." if __package__ == "training" else "keras-mhgd "


def module(program: str) -> str:
    """Gives the name of a program's module."""
    return f"{__package__}.{program}"


def called(program: str) -> str:
    """Gives the command that runs a program, as its user may type it."""
    return f"{_prefix}{program}"


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs the `main` of the program that was started, with absl's flags.

    Args:
        main: Function of the arguments that are no flags. The program's
            docstring is its help text, in which `%s` stands for the command.
    """
    program = sys.modules["__main__"]
    command = called(program.__spec__.name.rpartition(".")[2])
    program.__doc__ = program.__doc__.replace("%s", command)
    # absl lists the flags of `sys.argv[0]`, the program's file. It would leave
    # out those that the program shares with others.
    defined = flags.FLAGS.flags_by_module_dict()
    shared = defined.pop(module("options"), [])
    defined[command] = [*defined.pop(sys.argv[0], []), *shared]
    sys.argv[0] = command
    app.run(main)


def main() -> None:
    """Runs the program that the first argument names, with the others."""
    global _prefix
    if pathlib.Path(sys.argv[0]).name == "__main__.py":
        _prefix = "python -m keras_mhgd "
    program, *arguments = sys.argv[1:] or ["--help"]
    if program in ("--help", "-h", "help"):
        print(_overview())
        return
    if program not in PROGRAMS:
        raise SystemExit(
            f"The command must be one of {', '.join(PROGRAMS)}. "
            f"Received: {program}. Run {called('--help')} for what they do."
        )
    sys.argv[1:] = arguments
    runpy.run_module(module(program), run_name="__main__", alter_sys=True)


def _overview() -> str:
    """Lists the programs, each with the first line of its docstring."""
    lines = [f"usage: {called('<command>')} [flags]", ""]
    for program in PROGRAMS:
        file = pathlib.Path(__file__).with_name(f"{program}.py")
        text = ast.get_docstring(ast.parse(file.read_text("utf-8")))
        lines.append(f"  {program:<16}{text.partition(chr(10))[0]}")
    lines += ["", f"{called('<command>')} --help lists the flags of a command."]
    return "\n".join(lines)
