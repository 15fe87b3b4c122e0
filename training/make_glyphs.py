"""Renders the glyphs data set from the typefaces installed on a machine.

A class is a character. An image shows one character in one typeface, with a
small random scale, rotation and shift. Training and test images use different
families of typefaces. The shipped file was made with most of Debian's `fonts-*`
packages installed.

Example:
    %s --out=glyphs.npz --seed=0
"""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from . import commands

FLAGS = flags.FLAGS
CHARACTERS = (*map(chr, range(33, 127)), *"éñüçÅß")
SIDE = 28  # height and width of an image, pixels
TRAIN_PER_CLASS, TEST_PER_CLASS = 200, 50

_FONTS = Path("/usr/share/fonts")
_FAINTEST_PEAK = 60  # images with only darker pixels count as empty
_STYLES = re.compile(
    r"(bold|italic|oblique|regular|light|medium|black|thin|mono|bd|it|rg|r|b|i)"
    r"+\.?(ttf|otf)?$"
)


def find_families(folder: Path = _FONTS) -> dict[str, list[Path]]:
    """Groups the usable typefaces below a folder by family.

    Args:
        folder: Searched for `.ttf` and `.otf` files at any depth.

    Returns:
        Files that draw every character, by family, which is the start of the
        file names.
    """
    families = {}
    for path in sorted(folder.glob("**/*.[to]tf")):
        if _is_usable(path):
            stem = re.split(r"[-_ ]", path.name)[0].lower()
            family = _STYLES.sub("", stem)[:8]
            families.setdefault(family, []).append(path)
    return families


def _is_usable(path: Path) -> bool:
    # Imported here, since `--help` must need no packages of the extra.
    from fontTools.ttLib import TTFont, TTLibError
    from PIL import ImageFont

    try:
        with path.open("rb") as file:
            covered = TTFont(file, lazy=True, fontNumber=0).getBestCmap() or {}
        if any(ord(character) not in covered for character in CHARACTERS):
            return False
        font = ImageFont.truetype(str(path), 40)
        masks = {letter: font.getmask(letter) for letter in "ABgW"}
    except (OSError, TTLibError, ValueError, KeyError):  # a damaged typeface
        return False
    if any(mask.getbbox() is None for mask in masks.values()):
        return False
    # Typefaces of boxes or symbols draw every letter alike.
    return np.asarray(masks["A"]).sum() != np.asarray(masks["B"]).sum()


def draw(path: Path, character: str, rng: np.random.Generator) -> np.ndarray:
    """Draws one character.

    Args:
        path: Typeface.
        character: The character to draw.
        rng: Generator, which draws size, shift and rotation (up to 12
            degrees), in this order.

    Returns:
        uint8 `(28, 28)`, white on black.
    """
    from PIL import Image, ImageDraw, ImageFont

    # Draws at twice the final size, on a canvas with room for the rotation.
    font = ImageFont.truetype(
        str(path), 2 * int(round(20 * rng.uniform(0.85, 1.2)))
    )
    image = Image.new("L", (SIDE * 4, SIDE * 4))
    pen = ImageDraw.Draw(image)
    height, width = sum(font.getmetrics()), pen.textlength(character, font=font)
    left = SIDE * 2 - width / 2 + rng.uniform(-4, 4)
    top = SIDE * 2 - height / 2 + rng.uniform(-4, 4)
    pen.text((left, top), character, fill=255, font=font)
    image = image.rotate(
        rng.uniform(-12, 12), resample=Image.Resampling.BICUBIC
    )
    image = image.crop((SIDE, SIDE, SIDE * 3, SIDE * 3))
    image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8)


def draw_classes(
    families: Sequence[Sequence[Path]],
    per_class: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the same number of images of every character, shuffled.

    Args:
        families: Typefaces of each family. The chance of a family is
            proportional to the square root of its size.
        per_class: Number of images of each character.
        rng: Generator, which draws typefaces, variations and the order.

    Returns:
        Images, uint8 `(count, 28, 28, 1)`, and labels, uint8 `(count,)`.
    """
    paths = [path for family in families for path in family]
    weights = np.array([len(f) ** -0.5 for f in families for _ in f])
    weights /= weights.sum()
    images, labels = [], []
    for label, character in enumerate(CHARACTERS):
        while len(images) < per_class * (label + 1):
            path = paths[rng.choice(len(paths), p=weights)]
            try:
                image = draw(path, character, rng)
            except OSError:  # FreeType cannot draw it at this size
                continue
            if image.max() >= _FAINTEST_PEAK:
                images.append(image)
                labels.append(label)
    order = rng.permutation(len(labels))
    return np.stack(images)[order, ..., None], np.uint8(labels)[order]


def main(_: Sequence[str]) -> None:
    """Renders and writes the data set."""
    if not all(map(importlib.util.find_spec, ("fontTools", "PIL"))):
        raise ImportError(
            "Rendering glyphs must have the packages of the extra glyphs. "
            "Received: an environment without them. Run "
            "`pip install 'keras-mhgd[glyphs]'`."
        )
    rng = np.random.default_rng(FLAGS.seed)
    fonts = find_families()
    if len(fonts) < 2:
        raise app.UsageError(
            f"There must be typefaces of at least two families in {_FONTS}. "
            f"Received: {len(fonts)}. Install packages named fonts-*."
        )
    names = sorted(fonts)
    rng.shuffle(names)
    families = [fonts[name] for name in names]
    cut = int(len(families) * 0.75)
    x_train, y_train = draw_classes(families[:cut], TRAIN_PER_CLASS, rng)
    x_test, y_test = draw_classes(families[cut:], TEST_PER_CLASS, rng)
    np.savez_compressed(
        FLAGS.out,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=np.array(CHARACTERS),
    )
    faces = sum(map(len, families))
    print(f"{FLAGS.out}: {len(names)} families, {faces} faces")


if __name__ == "__main__":
    flags.DEFINE_string("out", "glyphs.npz", "File to write.")
    flags.DEFINE_integer("seed", 0, "Seed of every draw.")
    commands.run(main)
