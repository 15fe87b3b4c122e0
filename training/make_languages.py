"""Makes the languages data set from Debian's spelling dictionaries.

A class is a language. A sample is a word of its dictionary, as a row of
character numbers. A word that is in the dictionaries of two languages is in
neither class. Training and test words of a language differ.

The packages may be installed. It is enough to unpack them into a folder:

    apt-get download hunspell-af hunspell-be ...
    for each in *.deb; do dpkg -x $each words; done

The program names the packages that it misses. It also writes a table of the
packages, with versions and licences, beside the data set.

Example:
    %s --root=words --out=languages40.npz
"""

import collections
import gzip
import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags

from keras_mhgd.storage.files import write_atomically

from . import commands
from .reports.tables import markdown

FLAGS = flags.FLAGS
TRAIN_PER_CLASS, TEST_PER_CLASS = 1500, 250
SHORTEST, LONGEST = 3, 20  # characters of a word

_RAREST_LETTER = 1e-3  # least part of a language's words that have a letter
_INNER = "'·"  # Breton c'h, Catalan l·l
_WITHOUT_INNER = str.maketrans("", "", _INNER)
# Entries with these flags are parts of words, or no words at all.
_NO_WORDS = ("FORBIDDENWORD", "NEEDAFFIX", "ONLYINCOMPOUND", "PSEUDOROOT")
_FOLDERS = "usr/share/dict", "usr/share/myspell/dicts", "usr/share/hunspell"
_PREFACE = """# The languages data set

The set has {train:,} training words and {test:,} test words of each of
{languages} languages, in {characters} characters. `training/make_languages.py`
draws them, and says which words it leaves out. The column "words" counts the
words that it draws from, before it drops the words that two languages have.

The words come from these packages of Debian, under the licences of the last
column.

{table}
"""


class Language(NamedTuple):
    """Names a class and the file that its words come from."""

    name: str
    file: str  # a list if it ends in no .dic
    package: str
    licence: str  # of the words, as the package names it


_LANGUAGES = """
Afrikaans          af_ZA.dic  hunspell-af     LGPL-2.1+
Belarusian         be_BY.dic  hunspell-be     CC-BY-SA-3.0
Breton             br_FR.dic  hunspell-br     LGPL-2.1+, MPL-1.1 and GPL-2+
Bulgarian          bg_BG.dic  hunspell-bg     GPL-2
Catalan            ca.dic     hunspell-ca     GPL-2+ and LGPL-2.1+
Croatian           hr_HR.dic  hunspell-hr     LGPL or SISSL
Czech              cs_CZ.dic  hunspell-cs     GPL-2
Danish             da_DK.dic  hunspell-da     GPL-2, LGPL-2.1 or MPL-1.1
Dutch              nl.dic     hunspell-nl     BSD-3-clause or CC-BY-3.0
English            en_US.dic  hunspell-en-us  SCOWL, permissive
Esperanto          eo.dic     myspell-eo      GPL-2+
Estonian           et_EE.dic  myspell-et      LGPL-2.1+
Faroese            fo.dic     myspell-fo      GPL-2+
French             french     wfrench         GPL-2+
Galician           gl_ES.dic  hunspell-gl     GPL
German             de_DE.dic  hunspell-de-de  GPL-2+
Hungarian          hu_HU.dic  hunspell-hu     GPL-3+, LGPL-3+ or MPL-2.0+
Icelandic          is_IS.dic  hunspell-is     CC-BY-SA-3.0
Indonesian         id_ID.dic  hunspell-id     LGPL-3
Irish              irish      wirish          GPL-3
Italian            it_IT.dic  hunspell-it     GPL-3
Latvian            lv_LV.dic  hunspell-lv     LGPL-2.1+
Lithuanian         lt_LT.dic  hunspell-lt     BSD-3-clause
Mongolian          mn_MN.dic  hunspell-mn     LPPL-1.3+
Norwegian Bokmål   nb_NO.dic  hunspell-no     GPL-2
Norwegian Nynorsk  nn_NO.dic  hunspell-no     GPL-2
Occitan            oc_FR.dic  hunspell-oc     GPL-2+
Polish             pl_PL.dic  hunspell-pl     (L)GPL, MPL, Apache-2.0 or CC-SA
Portuguese         pt_PT.dic  hunspell-pt-pt  GPL-2, LGPL-2.1 or MPL-1.1
Romanian           ro_RO.dic  hunspell-ro     GPL-2, LGPL-2.1 or MPL-1.1
Russian            ru_RU.dic  hunspell-ru     BSD-4-clause
Scottish Gaelic    gd_GB.dic  hunspell-gd     GPL-3+
Slovak             sk_SK.dic  hunspell-sk     GPL-2, LGPL-2.1 or MPL-1.1
Slovene            sl_SI.dic  hunspell-sl     GPL or LGPL
Spanish            es_ES.dic  hunspell-es     GPL-3+, LGPL-3+ or MPL-1.1+
Swahili            sw_TZ.dic  hunspell-sw     LGPL-2.1+
Swedish            sv_SE.dic  hunspell-sv     LGPL-3
Tagalog            tl.dic     myspell-tl      GPL-2+
Turkish            tr_TR.dic  hunspell-tr     MPL-2.0
Ukrainian          uk_UA.dic  hunspell-uk     GPL-2+, LGPL-2.1+ or MPL-1.1
"""
LANGUAGES = tuple(
    Language(*re.split(r"\s{2,}", line))
    for line in _LANGUAGES.strip().splitlines()
)


def read_words(path: Path) -> set[str]:
    """Reads the words of a dictionary of hunspell, or of a list.

    Words are written in Unicode's normal form KC, so the Dutch `ĳ` is two
    letters. A word has 3 to 20 characters. They are small letters, and inside
    of the word apostrophes and middle dots. Each letter is usual in the
    language: it is in at least one of 1000 words. So names, abbreviations and
    foreign spellings are left out. No affix is applied.

    Args:
        path: A file `.dic`, beside which its `.aff` is, or a list in UTF-8
            with a word a line.

    Returns:
        The words.
    """
    entries = _entries(path) if path.suffix == ".dic" else _lines(path, "utf-8")
    words = (unicodedata.normalize("NFKC", each) for each in entries)
    words = {each.replace("’", "'") for each in words}
    words = set(filter(_is_word, words))
    counts = collections.Counter(each for word in words for each in set(word))
    least = _RAREST_LETTER * len(words)
    usual = {each for each, count in counts.items() if count >= least}
    return set(filter(usual.issuperset, words))


def _is_word(text: str) -> bool:
    return (
        SHORTEST <= len(text) <= LONGEST
        and text.strip(_INNER) == text
        and text.translate(_WITHOUT_INNER).isalpha()
        and text.lower() == text
    )


def _lines(path: Path, encoding: str) -> list[str]:
    # Some dictionaries hold single bytes of another encoding. The character
    # that replaces them is no letter.
    text = path.read_bytes().decode(encoding, "replace")
    return text.removeprefix("\ufeff").splitlines()


def _entries(path: Path) -> Iterator[str]:
    """Yields the entries of a dictionary that are whole words."""
    rules = _rules(path.with_suffix(".aff"))
    encoding, *_ = rules.get("SET", ["iso8859-1"])
    kind, *_ = rules.get("FLAG", ["short"])
    aliases = rules.get("AF", [])
    refused = {flag for name in _NO_WORDS for flag in rules.get(name, [])}
    for line in _lines(path, encoding)[1:]:  # the first line is their number
        entry, *_ = line.split(maxsplit=1) or [""]
        word, _, flags_ = entry.partition("/")
        if aliases and flags_.isdecimal():  # the first alias is their number
            flags_ = aliases[int(flags_)]
        if refused.isdisjoint(_flags(flags_, kind)):
            yield word


def _rules(path: Path) -> dict[str, list[str]]:
    """Reads the first value of each line of an `.aff` file, by its name."""
    found = re.search(rb"^\W*SET\s+(\S+)", path.read_bytes(), re.MULTILINE)
    rules = {}
    for line in _lines(path, found[1].decode() if found else "iso8859-1"):
        name, *values = line.split()[:2] or [""]
        rules.setdefault(name, []).extend(values)
    return rules


def _flags(text: str, kind: str) -> list[str]:
    if kind == "num":
        return text.split(",")
    size = 2 if kind == "long" else 1
    return [text[i : i + size] for i in range(0, len(text), size)]


def choose(
    words: Mapping[str, Iterable[str]], count: int, seed: int
) -> dict[str, list[str]]:
    """Draws words of each language that no other language has.

    A word's place in the order depends on the word and the seed alone. So a
    dictionary with a few more words changes a few of the drawn words.

    Args:
        words: Words by language.
        count: Number of words of each language.
        seed: Seed of the draw.

    Returns:
        The drawn words by language, in random order.

    Raises:
        ValueError: If a language has too few words.
    """
    times = collections.Counter(each for own in words.values() for each in own)

    def place(word):
        return hashlib.sha256(f"{seed} {word}".encode()).digest()

    drawn = {}
    for name, own in words.items():
        own = [each for each in own if times[each] == 1]
        if len(own) < count:
            raise ValueError(
                f"{name} must have {count} words that no other language has. "
                f"Received: {len(own)}. Leave it out, or draw fewer words."
            )
        drawn[name] = sorted(own, key=place)[:count]
    return drawn


def as_arrays(
    words: Mapping[str, Sequence[str]], train: int
) -> dict[str, np.ndarray]:
    """Makes the arrays of a data set of tokens.

    Args:
        words: Words by language, the same number of each.
        train: Number of words of each language to train on. The others are for
            the test.

    Returns:
        `x_train`, `y_train`, `x_test`, `y_test`, `classes` and `tokens`: see
        `keras_mhgd.data.Tokens`.
    """
    letters = sorted(set("".join("".join(own) for own in words.values())))
    numbers = {letter: number for number, letter in enumerate(letters, 1)}

    def part(chosen):
        # The first word of each language, then the second of each: the start
        # of the set has words of all languages.
        rows = [word for each in zip(*chosen, strict=True) for word in each]
        x = np.zeros((len(rows), LONGEST), np.uint8)
        for row, word in zip(x, rows, strict=True):
            row[: len(word)] = [numbers[letter] for letter in word]
        return x, np.uint8(np.arange(len(rows)) % len(words))

    x_train, y_train = part([own[:train] for own in words.values()])
    x_test, y_test = part([own[train:] for own in words.values()])
    return {
        "x_train": x_train,
        "y_train": y_train,
        "x_test": x_test,
        "y_test": y_test,
        "classes": np.array(list(words)),
        "tokens": np.array(["", *letters]),
    }


def find(root: Path) -> dict[str, Path]:
    """Finds the file of each language.

    Args:
        root: Folder of unpacked packages, or `/`.

    Raises:
        FileNotFoundError: If there is none for a language. The message names
            all missing packages.
    """
    found = {
        each.name: path
        for each in LANGUAGES
        for folder in _FOLDERS
        for path in [root / folder / each.file]
        if path.is_file()
    }
    missing = [each.package for each in LANGUAGES if each.name not in found]
    if missing:
        raise FileNotFoundError(
            f"{root} must hold the words of all {len(LANGUAGES)} languages. "
            f"Missing packages: {' '.join(dict.fromkeys(missing))}. Install "
            "them, or unpack them there."
        )
    return found


def sources(root: Path, words: Mapping[str, Iterable[str]]) -> str:
    """Makes the table of languages, packages and licences, as Markdown."""
    rows = [
        ["language", "script", "words", "package", "version", "licence"],
        *(
            [
                each.name,
                script(words[each.name]),
                f"{len(words[each.name]):,}",
                f"`{each.package}`",
                _version(root, each.package),
                each.licence,
            ]
            for each in LANGUAGES
        ),
    ]
    return markdown(rows)


def script(words: Iterable[str]) -> str:
    """Names the script of most letters of some words, such as Latin."""
    names = (unicodedata.name(word[0]).split()[0] for word in words)
    ((name, _),) = collections.Counter(names).most_common(1)
    return name.capitalize()


def _version(root: Path, package: str) -> str:
    """Reads the version of a package from its change log."""
    path = root / "usr/share/doc" / package / "changelog.Debian.gz"
    try:
        line, *_ = gzip.decompress(path.read_bytes()).decode().splitlines()
    except OSError:
        return "unknown"
    return re.search(r"\((.*?)\)", line)[1]


def make(root: Path, out: Path, seed: int) -> None:
    """Writes the data set, and the table of its sources beside it.

    The same words and seed give the same files, bit by bit.

    Args:
        root: Folder of the unpacked packages, or `/`.
        out: The `.npz` file. The table has the same name, with `.md`.
        seed: Seed of the draw.
    """
    words = {name: read_words(path) for name, path in find(root).items()}
    drawn = choose(words, TRAIN_PER_CLASS + TEST_PER_CLASS, seed)
    arrays = as_arrays(drawn, TRAIN_PER_CLASS)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(out, content.getvalue())
    table = _PREFACE.format(
        languages=len(LANGUAGES),
        train=TRAIN_PER_CLASS,
        test=TEST_PER_CLASS,
        characters=len(arrays["tokens"]) - 1,
        table=sources(root, words).strip(),
    )
    write_atomically(out.with_suffix(".md"), table)
    print(f"{out}: {len(drawn)} languages, {out.stat().st_size:,} bytes")


def main(_: Sequence[str]) -> None:
    """Makes the data set that the flags name."""
    try:
        make(Path(FLAGS.root), Path(FLAGS.out), FLAGS.seed)
    except FileNotFoundError as error:
        raise app.UsageError(str(error)) from error


if __name__ == "__main__":
    flags.DEFINE_string("root", "/", "Folder of the unpacked packages.")
    flags.DEFINE_string("out", "languages40.npz", "File to write.")
    flags.DEFINE_integer("seed", 0, "Seed of the draw.")
    commands.run(main)
