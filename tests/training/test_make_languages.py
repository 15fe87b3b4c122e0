import gzip

import numpy as np
import pytest

from training import make_languages

AFF = """SET ISO8859-1
FORBIDDENWORD !
ONLYINCOMPOUND O
SFX S Y 1
"""
DIC = """11
über/S
Name/S
x-ray
el
wa'ter
'tis
kaffee po:noun
teilO/O
teil/O
falsch/!S
trink\tis:x
"""


@pytest.fixture
def dictionary(tmp_path):
    (tmp_path / "de.aff").write_text(AFF, "iso8859-1")
    (tmp_path / "de.dic").write_text(DIC, "iso8859-1")
    return tmp_path / "de.dic"


def test_reads_a_dictionary(dictionary):
    """Without names, parts of words, hyphens and flags."""
    words = make_languages.read_words(dictionary)
    assert words == {"über", "wa'ter", "kaffee", "trink"}


@pytest.mark.parametrize(
    ("head", "entries"),
    [
        ("FLAG num\nFORBIDDENWORD 12", ["good/1,2", "wrong/3,12", "plain"]),
        ("FLAG long\nNEEDAFFIX zz", ["good/zaaz", "wrong/aazz", "plain"]),
        ("FORBIDDENWORD F\nAF 2\nAF AB\nAF AF", ["good/1", "wrong/2", "plain"]),
    ],
)
def test_reads_flags_of_each_kind(tmp_path, head, entries):
    (tmp_path / "xx.aff").write_text(f"\ufeffSET UTF-8\n{head}\n")
    (tmp_path / "xx.dic").write_text("\n".join(["3", *entries]))
    words = make_languages.read_words(tmp_path / "xx.dic")
    assert words == {"good", "plain"}


def test_reads_a_list(tmp_path):
    """Without letters that hardly any word has. A ligature is two letters."""
    common = [
        f"{a}{b}{c}" for a in "abcdefghijkl" for b in "aeiou" for c in "nrst"
    ]
    many = (
        common
        + [word + word for word in common]
        + [f"{word}{other}" for word in common[:40] for other in common[:20]]
    )
    odd = ["cañon", "dıj", "ab", "a" * 21, "dak’ar", "ijs", "ĳs"]
    (tmp_path / "words").write_text("\n".join([*many, *odd]))
    words = make_languages.read_words(tmp_path / "words")
    assert words == {*many, "ijs"}


WORDS = {
    "one": {f"a{i}" for i in range(30)} | {"same"},
    "two": {f"b{i}" for i in range(20)} | {"same"},
}


def test_draws_words_of_one_language():
    drawn = make_languages.choose(WORDS, 20, seed=0)
    assert {name: len(own) for name, own in drawn.items()} == {
        "one": 20,
        "two": 20,
    }
    assert set(drawn["two"]) == WORDS["two"] - {"same"}
    assert drawn == make_languages.choose(WORDS, 20, seed=0)
    assert drawn != make_languages.choose(WORDS, 20, seed=1)
    # A few new words change few of the drawn ones.
    more = WORDS | {"one": WORDS["one"] | {"c1", "c2"}}
    again = make_languages.choose(more, 20, seed=0)
    assert len(set(again["one"]) & set(drawn["one"])) >= 18
    with pytest.raises(ValueError, match="two must have 21 words.*: 20. Leave"):
        make_languages.choose(WORDS, 21, seed=0)


def test_arrays():
    words = {"one": ["abc", "cab", "bbb"], "two": ["äbc", "aä", "ää"]}
    arrays = make_languages.as_arrays(words, train=2)
    assert arrays["tokens"].tolist() == ["", "a", "b", "c", "ä"]
    assert arrays["x_train"].shape == (4, 20)
    assert arrays["x_train"][:2, :4].tolist() == [[1, 2, 3, 0], [4, 2, 3, 0]]
    assert arrays["y_train"].tolist() == [0, 1, 0, 1]
    assert arrays["x_test"][:, :4].tolist() == [[2, 2, 2, 0], [4, 4, 0, 0]]
    assert arrays["y_test"].tolist() == [0, 1]
    assert arrays["classes"].tolist() == ["one", "two"]


def folder_of_words(root):
    """Each language has words of its own, as a list or a dictionary."""
    (root / "usr/share/dict").mkdir(parents=True)
    (root / "usr/share/hunspell").mkdir()
    for number, language in enumerate(make_languages.LANGUAGES):
        first = chr(ord("a") + number % 26) * (3 + number // 26)
        words = [first + a + b for a in "abcdefghij" for b in "klmnopqrst"]
        path = root / "usr/share/dict" / language.file
        if path.suffix == ".dic":
            path = root / "usr/share/hunspell" / language.file
            path.with_suffix(".aff").write_text("SET UTF-8\n")
            words.insert(0, "100")
        path.write_text("\n".join(words))
        folder = root / "usr/share/doc" / language.package
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "changelog.Debian.gz").write_bytes(
            gzip.compress(b"source (1.2-3) unstable\n")
        )


def test_same_words_same_file(tmp_path, monkeypatch):
    folder_of_words(tmp_path)
    monkeypatch.setattr(make_languages, "TRAIN_PER_CLASS", 6)
    monkeypatch.setattr(make_languages, "TEST_PER_CLASS", 3)
    for name in ("a", "b"):
        make_languages.make(tmp_path, tmp_path / f"{name}.npz", seed=0)
    a, b = (tmp_path / f"{name}.npz" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    with np.load(a) as arrays:
        assert arrays["x_train"].shape == (240, 20)
        assert arrays["x_test"].shape == (120, 20)
    table = a.with_suffix(".md").read_text()
    assert "| Irish | Latin | 100 | `wirish` | 1.2-3 | GPL-3 |" in table
    assert table == b.with_suffix(".md").read_text()


def test_names_missing_packages(tmp_path):
    folder_of_words(tmp_path)
    (tmp_path / "usr/share/dict/irish").unlink()
    (tmp_path / "usr/share/hunspell/nb_NO.dic").unlink()
    (tmp_path / "usr/share/hunspell/nn_NO.dic").unlink()
    with pytest.raises(
        FileNotFoundError, match="packages: wirish hunspell-no. Install"
    ):
        make_languages.find(tmp_path)


def test_scripts():
    assert make_languages.script(["дом", "кот"]) == "Cyrillic"
    assert make_languages.script(["été"]) == "Latin"
