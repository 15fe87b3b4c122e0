"""The guides are notebooks without outputs, which the site's build runs."""

import ast
import json
import pathlib
import re

import pytest

GUIDES = pathlib.Path(__file__).parents[1] / "docs" / "guides"
NAMES = [
    "attention_graphs",
    "choosing_a_method",
    "images_without_labels",
    "many_gpus_and_hosts",
    "padded_text",
    "photos_to_int8",
    "writing_a_method",
]


def test_all_guides_are_tested():
    assert sorted(path.stem for path in GUIDES.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_is_a_notebook_without_outputs(name):
    notebook = json.loads((GUIDES / f"{name}.ipynb").read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"] == {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    cells = notebook["cells"]
    numbers = [cell["id"] for cell in cells]
    assert len(set(numbers)) == len(numbers)
    for cell in cells:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert cell["metadata"] == {}
        expected = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            expected |= {"execution_count", "outputs"}
            assert cell["execution_count"] is None
            assert cell["outputs"] == []
            ast.parse("".join(cell["source"]))
        else:
            assert cell["cell_type"] == "markdown"
        assert set(cell) == expected
    assert cells[0]["source"][0].startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name):
    notebook = json.loads((GUIDES / f"{name}.ipynb").read_text("utf-8"))
    text = "".join(
        "".join(cell["source"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown"
    )
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in link or (GUIDES / link).is_file(), link
