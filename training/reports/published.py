"""Reads published results, and writes them as a page to compare with.

python -m training.reports.published > docs/published.md
"""

import pathlib
import tomllib
from typing import Any

from . import tables

_HEAD = """# Published results

`python -m training.reports.published` writes this page. The commands of the
tables are in [BUILD.md](../BUILD.md#reproducing-tables). Nobody has run them
here yet, so the last column is empty. Some published results are left out,
because the publications do not say enough about them. These are the students
VGG and ResNet of the teacher WRN22-4 on CIFAR-100, and the method KD-EID.
"""


def _pairs() -> list[dict[str, Any]]:
    content = pathlib.Path(__file__).with_suffix(".toml").read_text()
    return tomllib.loads(content)["pair"]


def published(
    dataset: str, teacher: str, student: str
) -> tuple[str, dict[str, str]]:
    """Looks up published results of a pair of networks.

    Args:
        dataset: Name of the data set.
        teacher: Name of the teacher's architecture.
        student: Name of the student's architecture.

    Returns:
        The source, and the results by name of the method. If no results are
        known, both are empty.
    """
    for pair in _pairs():
        if (pair["dataset"], pair["teacher"], pair["student"]) == (
            dataset,
            teacher,
            student,
        ):
            return pair["source"], pair["results"]
    return "", {}


def text() -> str:
    """Writes all published results as Markdown, with a column for ours."""
    parts = [_HEAD]
    for pair in _pairs():
        cells = [["", "published", "here"]]
        cells += [[name, each, ""] for name, each in pair["results"].items()]
        source = pair["source"]
        parts.append(
            f"## {pair['student']} from {pair['teacher']}, "
            f"{pair['dataset']}\n\n"
            f"{tables.markdown(cells)}\n{source[0].upper()}{source[1:]}.\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    print(text(), end="")
