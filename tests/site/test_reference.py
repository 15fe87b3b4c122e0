"""Every public name is in the reference."""

import pathlib
import zlib

import pytest

from tests.test_public_names import MODULES

SITE = pathlib.Path(__file__).parents[2] / "site"


@pytest.fixture(scope="module")
def places():
    """The page and place of each name, from the inventory."""
    content = (SITE / "objects.inv").read_bytes()
    *_, packed = content.split(b"\n", maxsplit=4)
    lines = zlib.decompress(packed).decode().splitlines()
    entries = (line.split() for line in lines)
    return {name: place.replace("$", name) for name, _, _, place, *_ in entries}


@pytest.mark.parametrize("module", MODULES, ids=lambda each: each.__name__)
def test_public_names_are_in_the_reference(module, places):
    names = [f"{module.__name__}.{each}" for each in module.__all__]
    assert not [each for each in names if each not in places]
    for each in names:
        page, _, place = places[each].partition("#")
        assert f'id="{place}"' in (SITE / page / "index.html").read_text()
