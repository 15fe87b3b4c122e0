import pathlib
import shutil
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from training import make_glyphs

FONTS = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Two families of typefaces, a damaged file, a face without letters."""
    folder = tmp_path_factory.mktemp("fonts")
    for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "STIXGeneral.ttf"):
        shutil.copy(FONTS / name, folder)
    shutil.copy(FONTS / "cmsy10.ttf", folder)
    (folder / "Damaged.ttf").write_bytes(b"no typeface")
    return make_glyphs.find_families(folder)


def test_finds_usable_families(families):
    found = {name: len(paths) for name, paths in families.items()}
    assert found == {"dejavusa": 2, "stixgene": 1}


def test_draws_every_class_the_same_for_a_seed(families):
    def draw():
        return make_glyphs.draw_classes(
            list(families.values()), 2, np.random.default_rng(3)
        )

    images, labels = draw()
    assert images.shape == (200, 28, 28, 1)
    assert images.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(labels), 2)
    assert images.max(axis=(1, 2, 3)).min() >= 60
    for a, b in zip(draw(), (images, labels), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("package", ["fontTools", "PIL"])
def test_tells_what_to_install(package):
    """In an environment without a package of the extra."""
    code = f"import sys; sys.modules[{package!r}] = None\n"
    code += "from training import commands; commands.main()"

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", code, "make_glyphs", *arguments],
            capture_output=True,
            text=True,
        )

    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: Rendering glyphs must have the packages of the extra glyphs. "
        "Received: an environment without them. Run "
        "`pip install 'keras-mhgd[glyphs]'`.\n"
    )
    done = run("--help")
    assert done.returncode == 0 and "\n  --out " in done.stdout
