"""Runs programs by their names, and names them as their user does.

In a checkout the programs are `python -m training.<program>`. An installed
package has the same files as `keras_mhgd.training`, and the programs are
`keras-mhgd <program>` or `python -m keras_mhgd <program>`.
"""

import ast
import functools
import itertools
import linecache
import pathlib
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence

from absl import app, flags, logging

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

# The flags that `--help` shows by group. Those after a bar are only named.
_GROUPS = {
    "data": "dataset subset validation_split batch_size image_size "
    "| data_dir download",
    "networks and methods": "model teacher student alone method methods set "
    "sensing_points ways cache_teacher cache_dtype preparation_dir "
    "preparation_epochs nonfinite | cache_dir cache_top_k gradient_norms",
    "search": "tuner trials learning_rate_factor",
    "training": "epochs optimizer learning_rate schedule weight_decay seed "
    "views augmentation view_size unlabeled validation_freq | fused",
    "devices": "precision strategy jobs | cpu_devices synchronized",
    "output": "run out formats calibration_images least_agreement "
    "| uint8_input save_freq profile",
}
_COLUMNS = 100  # of what `--help` shows

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
    flags.FLAGS.verbosity = logging.WARNING  # absl's default tells more
    app.define_help_flags()
    for flag in (_Help(), _HelpShort(), _HelpFull()):
        flag.allow_override = True  # it takes the place of absl's
        flags.DEFINE_flag(flag)
    app.run(functools.partial(_run, main))


def _run(
    main: Callable[[Sequence[str]], None], arguments: Sequence[str]
) -> None:
    try:
        main(arguments)
    except app.UsageError as error:
        # absl would list all flags before the message.
        raise SystemExit(f"{error}\nSee {sys.argv[0]} --help.") from error
    except (ValueError, OSError, ImportError) as error:
        # The user asked for more by --verbosity=0.
        if flags.FLAGS.verbosity > logging.WARNING or not _is_told(error):
            raise
        raise SystemExit(f"Error: {error}") from error


def _is_told(error: Exception) -> bool:
    """Says whether the error is a message of this package to its user.

    It is if the package raises it by a `raise` of its own. An error that comes
    out of anything else may be a mistake in the code: its traceback is needed.
    """
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    line = linecache.getline(file, trace.tb_lineno).strip()
    package = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
    ours = ("keras_mhgd", "training", "__main__")
    return package in ours and line.startswith("raise ")


class _Help(app.HelpFlag):
    """Shows the flags by group, each by the first sentence of its help.

    The program then exits with 0. absl's flags of help exit with 1.
    """

    def parse(self, arg):
        if self._parse(arg):
            print(_help(sys.argv[0]))
            sys.exit()


class _HelpShort(_Help):
    NAME, SHORT_NAME = "helpshort", None


class _HelpFull(app.HelpfullFlag):
    """Shows all flags with their whole help, and exits with 0."""

    def parse(self, arg):
        if self._parse(arg):
            app.usage(writeto_stdout=True, exitcode=0)


def _help(command: str) -> str:
    """Writes what `--help` shows of a program."""
    title, *lines = sys.modules["__main__"].__doc__.splitlines()
    example = itertools.takewhile(
        str.strip, itertools.dropwhile(lambda line: command not in line, lines)
    )
    shown = [title, "", *_wrapped(example), ""]
    left = {
        flag.name: flag for flag in flags.FLAGS.flags_by_module_dict()[command]
    }
    for group, names in _GROUPS.items():
        told, _, named = (
            [left.pop(name) for name in part.split() if name in left]
            for part in names.partition("|")
        )
        shown += _section(group, told, named)
    shown += _section("others", left.values(), [])
    shown += ["", f"{command} --helpfull tells all about each flag."]
    return "\n".join(shown)


def _section(
    title: str, told: Iterable[flags.Flag], named: Iterable[flags.Flag]
) -> list[str]:
    """Writes a line for each flag that is told, and one for those named."""
    lines = []
    for flag in told:
        text, *_ = flag.help.partition(". ")
        text = " ".join(text.split()).removesuffix(".")
        if flag.default not in (None, []) and flag.default is not False:
            text += f" ({flag.default_as_str.strip(chr(39))})"
        lines.append(f"  {_switch(flag):<24}{text}")
    if named:
        lines += _wrapped(["also", *map(_switch, named)], indent="  ")
    return [f"{title}:", *lines] if lines else []


def _switch(flag: flags.Flag) -> str:
    return f"--{'[no]' * flag.boolean}{flag.name}"


def _wrapped(words: Iterable[str], indent: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(map(str.strip, words)),
        _COLUMNS,
        initial_indent=indent,
        subsequent_indent="    ",
        break_on_hyphens=False,
    )


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
    lines += ["", f"{called('<command>')} --help tells how to use a command."]
    return "\n".join(lines)
