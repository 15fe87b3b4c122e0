"""Each page of the navigation is listed, under its own title."""

import html
import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).parents[2]


def titles(entries):
    """The titles of sections and pages."""
    for entry in entries:
        for title, inner in entry.items():
            yield title
            if isinstance(inner, list):
                yield from titles(inner)


def test_every_title_is_listed():
    """Themes can show an index such as `README.md` as its section only."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    page = (ROOT / "site" / "index.html").read_text()
    listed = re.findall(r'"md-ellipsis">\s*(.*?)\s*<', page, re.DOTALL)
    expected = set(titles(nav))
    assert len(expected) > 40
    assert expected <= {html.unescape(each) for each in listed}
