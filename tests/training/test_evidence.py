"""The search for weights, with trainings that are made up."""

import json
import os
import pathlib
import re
import tarfile
import tomllib

import numpy as np
import pytest

from benchmarks.accuracy import archive, evidence, summary
from training import options
from training.runs.comparison import Comparison
from training.runs.flags import command_line


def test_a_search_begins_around_the_default():
    assert evidence.following({}) == [0, 1, -1]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({0: 0.5, 1: 0.4, -1: 0.4}, []),
        ({0: 0.5, 1: 0.6, -1: 0.4}, [2]),
        ({0: 0.5, 1: 0.6, -1: 0.4, 2: 0.7}, [3]),
        ({0: 0.5, 1: 0.6, -1: 0.4, 2: 0.5}, []),
        ({0: 0.5, 1: 0.6, -1: 0.7, -2: 0.8, -3: 0.9}, []),
        # Of equals the one nearest to the default.
        ({0: 0.0, 1: 0.0, -1: 0.0}, []),
        ({0: 0.1, 1: 0.5, -1: 0.0, 2: 0.5}, []),
    ],
)
def test_a_search_goes_on_while_the_best_is_outermost(found, expected):
    assert evidence.following(found) == expected


ROOT = pathlib.Path(__file__).parents[2]
WAYS = dict.fromkeys(["student", *evidence.OURS, "recommended"], [1, 2]) | {
    "dist, weight 4": [2, 3],
    # As far behind as seeds may decide on, and farther.
    "mutual_learning, weight 0.25": [1.5, 2.5],
    "mhgd": [1.5, 2.4],
}


class MadeUp(Comparison):
    """Trains nothing: accuracies are by the names of ways."""

    accuracies = {
        "student learning_rate 0.1": 0.5,
        "student learning_rate 0.4": 0.2,
        "student learning_rate 0.025": 0.4,
        "student learning_rate 0.00625": 0.1,
        "soft_logits learning_rate 0.1": 0.5,
        "soft_logits learning_rate 0.4": None,
        "soft_logits learning_rate 0.025": 0.7,
        "soft_logits learning_rate 0.00625": 0.3,
        "dist weight 0.25": 0.3,
        "dist weight 1": 0.4,
        "dist weight 4": 0.5,
        "dist weight 16": None,  # its loss becomes infinite
        "mhgd clip_bound 0.25": 0.6,
        "mhgd clip_bound 1": 0.7,
        "mhgd clip_bound 4": 0.2,
        "mutual_learning weight 0.25": 0.8,
        "mutual_learning weight 1": 0.7,
        "mutual_learning weight 4": 0.6,
        "mutual_learning weight 0.0625": None,
    }

    def run(self, trials, jobs):
        failed = False
        for way in self.ways:
            teacher = f"{evidence.RUNS}/glyphs_teacher_for_search"
            alone = "student " in way.name
            assert way.flags.get("teacher") == (None if alone else teacher)
            assert ("cache_teacher" in way.flags) != (
                alone or way.flags["method"] == "mutual_learning"
            )
            if "learning_rate" not in way.name:
                assert way.flags["learning_rate"] == 0.025
            accuracy = self.accuracies[way.name]
            if accuracy is None:
                failed = True
                continue
            folder = self.folder(way, 0)
            folder.mkdir()
            result = dict.fromkeys(("best_accuracy", "epochs", "seconds"), 1)
            text = json.dumps(result | {"accuracy": accuracy})
            (folder / "result.json").write_text(text)
        if failed:
            raise RuntimeError("All trainings must succeed.")


def test_a_table_is_made_with_what_was_found(tmp_path, monkeypatch, capsys):
    started = []

    def run(program, flags):
        ways = {}
        if "ways" in flags:
            found = tomllib.loads(flags["ways"].read_text())["way"]
            ways = {way.pop("name"): way for way in found}
        started.append((flags, ways))
        caches = list((tmp_path / "runs/small").glob("teacher_*"))
        assert not caches  # gone with the table that needed them
        if program == "training.compare":
            folder = tmp_path / "runs/small"
            write_table(folder / "table.csv", WAYS)
            for name in ("table.md", "result.png"):
                (folder / name).touch()
            (folder / "teacher_0").mkdir(exist_ok=True)

    table = evidence.Table(
        "glyphs",
        100,
        "resnet_small",
        8,
        ("dist", "mhgd", "mutual_learning"),
        {"one head": {"method": "mhgd", "set": {"num_heads": 1}}},
    )
    monkeypatch.setattr(evidence, "_run", run)
    monkeypatch.setattr(evidence, "Comparison", MadeUp)
    monkeypatch.setattr(evidence, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(evidence, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(evidence.TABLES, "small", table)
    evidence.main(["small"])
    lines = (tmp_path / "results/small/search.csv").read_text().split()
    assert lines == [
        "method,argument,value,accuracy",
        "student,learning_rate,0.00625,10.00",
        "student,learning_rate,0.025,40.00",
        "student,learning_rate,0.1,50.00",
        "student,learning_rate,0.4,20.00",
        "soft_logits,learning_rate,0.00625,30.00",
        "soft_logits,learning_rate,0.025,70.00",
        "soft_logits,learning_rate,0.1,50.00",
        "soft_logits,learning_rate,0.4,0.00",
        "dist,weight,0.25,30.00",
        "dist,weight,1,40.00",
        "dist,weight,4,50.00",
        "dist,weight,16,0.00",
        "mhgd,clip_bound,0.25,60.00",
        "mhgd,clip_bound,1,70.00",
        "mhgd,clip_bound,4,20.00",
        "mutual_learning,weight,0.0625,0.00",
        "mutual_learning,weight,0.25,80.00",
        "mutual_learning,weight,1,70.00",
        "mutual_learning,weight,4,60.00",
    ]
    assert "All trainings must succeed." in capsys.readouterr().err
    (teacher, _), (compare, ways), (close, closest), (signs, both) = started
    # What weights are chosen by was held out when their teacher was trained.
    config = json.loads(
        (tmp_path / "runs/small_search/config.json").read_text()
    )
    for flags in (teacher, config["shared"]):
        assert flags["validation_split"] == 0.25
    assert config["shared"]["epochs"] == 4
    assert compare["learning_rate"] == "0.025"
    assert "validation_split" not in compare and compare["epochs"] == 8
    assert compare["methods"] == ["student", "recommended"]
    found = {
        "dist, weight 4": {"method": "dist", "set": {"weight": 4.0}},
        "mutual_learning, weight 0.25": {
            "method": "mutual_learning",
            "set": {"weight": 0.25},
        },
    }
    fixed = {"variant": {"fix_signs": True}}
    assert ways == {
        "mhgd": {"method": "mhgd", "set": fixed},
        **evidence.OURS,
        "one head": {"method": "mhgd", "set": {"num_heads": 1}},
        **found,
    }
    # Over more trials the best single ones, and ours, also without MHGD.
    assert close["methods"] == ["student", "recommended"]
    assert closest == {
        **found,
        "soft_logits + dist": {"method": "soft_logits+dist"},
    }
    # MHGD with fixed signs and as published, and the student alone.
    assert signs["methods"] == ["student"]
    assert both == {
        "mhgd": {"method": "mhgd", "set": fixed},
        "mhgd, varied signs": {"method": "mhgd", "cache_teacher": False},
    }
    trials = [each["trials"] for each in (compare, close, signs)]
    assert trials == [3, 10, 5]
    for each in (compare, close, signs):
        assert each["run"] == tmp_path / "runs/small"
    for name in ("close.csv", "signs.csv", "signs.md"):
        assert (tmp_path / "results/small" / name).exists()
    assert not list((tmp_path / "runs/small").glob("teacher_*"))


def test_a_table_without_a_search(tmp_path, monkeypatch):
    started = []

    def run(program, flags):
        started.append((program, flags))
        write_table(tmp_path / "runs/plain/table.csv", {"student": [1, 2]})
        for name in ("table.md", "result.png"):
            (tmp_path / "runs/plain" / name).touch()

    ways = {"dkd": {"method": "dkd"}}
    table = evidence.Table("glyphs", 100, "resnet_small", 8, (), ways, 5)
    monkeypatch.setattr(evidence, "_run", run)
    monkeypatch.setattr(evidence, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(evidence, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(evidence.TABLES, "plain", table)
    evidence.main(["plain"])
    ((program, flags),) = started
    assert program == "training.compare"
    assert flags["learning_rate"] == "0.1" and flags["trials"] == 5
    assert flags["methods"] == ["student"]
    assert 'name = "dkd"\nmethod = "dkd"' in flags["ways"].read_text()
    names = {each.name for each in (tmp_path / "results/plain").iterdir()}
    made = {"table.md", "table.csv", "result.png", "differences.md"}
    assert names == made


def test_a_search_of_which_nothing_succeeds_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "_run", lambda *_: None)
    monkeypatch.setattr(evidence, "Comparison", MadeUp)
    monkeypatch.setattr(evidence, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(evidence, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(MadeUp, "accuracies", dict.fromkeys(MadeUp.accuracies))
    with pytest.raises(RuntimeError, match="All trainings must succeed"):
        evidence.main(["thin"])


def write_table(path, ways):
    lines = [
        f'"{way}",{trial},{accuracy}'
        for way, accuracies in ways.items()
        for trial, accuracy in enumerate(accuracies)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["way,trial,last", *lines]))


def test_a_summary_compares_seed_by_seed(tmp_path):
    ways = {
        "student": [70, 71, 72],
        "soft_logits": [80, 80, 82],
        "dist, weight 4": [82, 80, 81],
        "mhgd": [71, 71, 71],
        # No single methods of the literature.
        "MHGD, 1 head": [99, 99, 99],
        "MHGD, cross": [72, 73, 74],
        "soft_logits + dist": [99, 99, 99],
        "recommended": [83, 82, 81],
    }
    close = {
        "student": [70, 71, 72, 70],
        "soft_logits": [80, 80, 82, 83],
        "dist, weight 4": [82, 80, 81, 80],
        "soft_logits + dist": [82, 81, 80, 80],
        "recommended": [83, 82, 81, 81],
    }
    write_table(tmp_path / "pair/table.csv", ways)
    (tmp_path / "pair/search.csv").write_text(
        "method,argument,value,accuracy\n"
        "student,learning_rate,0.1,60\nstudent,learning_rate,0.4,65\n"
        "soft_logits,learning_rate,0.1,72\nsoft_logits,learning_rate,0.4,70\n"
        "dist,weight,4,99\n"
    )
    write_table(tmp_path / "untuned/table.csv", ways)
    summary.main(tmp_path)
    *_, line, _, _ = (tmp_path / "summary.md").read_text().splitlines()
    assert line.startswith("| pair | 0.4 | 71.00 | 81.00 (dist, weight 4) |")
    assert line.endswith("| +1.00 ± 2.48 (3 seeds) | -17.00 ± 2.48 |")
    write_table(tmp_path / "pair/close.csv", close)
    assert summary.best_singles(tmp_path / "pair/table.csv") == [
        "dist, weight 4",
        "soft_logits",
    ]
    summary.main(tmp_path)
    head, _, line, *_ = (tmp_path / "summary.md").read_text().splitlines()
    # With more seeds another one is the best.
    assert line == (
        "| pair | 0.4 | 70.75 | 81.25 (soft_logits) | 71.00 | 73.00 | 81.75 "
        # 3.182 / sqrt(4) times the deviation of 3, 2, -1 and -2, 2.38.
        "| +2.00 ± 0.00 | +0.50 ± 3.79 (4 seeds) | +1.00 ± 0.00 |"
    )
    assert head.count("|") == line.count("|")
    lines = (tmp_path / "untuned/differences.md").read_text().splitlines()
    assert lines[0] == (
        "|  | accuracy | less student | less soft_logits | less mhgd "
        "| less MHGD, cross |"
    )
    assert lines[2] == (
        "| student | 71.00 |  | -9.67 ± 1.43 | +0.00 ± 2.48 | -2.00 ± 0.00 |"
    )
    assert len(lines) == 2 + len(ways) + 2
    ways["soft_logits, weight 4"] = ways.pop("soft_logits")
    write_table(tmp_path / "untuned/table.csv", ways)
    summary.main(tmp_path)
    head, *_ = (tmp_path / "untuned/differences.md").read_text().splitlines()
    assert "| less soft_logits, weight 4 | less mhgd |" in head


def test_an_archive_holds_what_counts_as_done(tmp_path):
    everything = [
        "config.json", "metrics.csv", "result.json", "last.keras", "log",
    ]  # fmt: skip
    runs = tmp_path / "runs/evidence"
    trainings = {
        "thin/dist_0": ["config.json", "metrics.csv", "result.json"],
        "thin_search/dist_0": ["config.json", "result.json"],
        "glyphs_teacher_for_search": everything[:-1],
    }
    labels = np.arange(9)
    for folder in [*trainings, "thin/ended_early_0", "other/dist_0"]:
        (runs / folder).mkdir(parents=True)
        for name in everything:
            (runs / folder / name).write_text(f"{folder} {name}")
        np.savez_compressed(runs / folder / "predictions.npz", labels=labels)
    (runs / "thin/ended_early_0/result.json").unlink()
    for comparison in "thin", "thin_search", "other":
        (runs / comparison / "config.json").touch()
    path = tmp_path / "runs.tar.xz"
    archive.main(runs, path)
    packed = path.read_bytes()
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked/evidence"
    found = {
        str(each.relative_to(unpacked)): each
        for each in unpacked.rglob("*")
        if each.is_file()
    }
    with np.load(found.pop("thin/dist_0/predictions.npz")) as arrays:
        np.testing.assert_array_equal(arrays["labels"], labels)
    assert {name: each.read_text() for name, each in found.items()} == {
        "thin/config.json": "",
        "thin_search/config.json": "",
    } | {
        f"{folder}/{name}": f"{folder} {name}"
        for folder, names in trainings.items()
        for name in names
    }
    # The same again, whenever what it holds was made.
    for each in runs.rglob("*"):
        os.utime(each, (0, 0))
    archive.main(runs, path)
    assert path.read_bytes() == packed


def figures(cells):
    return re.findall(r"[-+]?\d+\.\d+", " ".join(cells))


def tables(name):
    """The cells of a page's tables, line by line."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / name).read_text().splitlines()
        if line.startswith("|")
    ]


def test_the_docs_have_the_figures_of_the_summary():
    _, _, *lines = tables("benchmarks/accuracy/evidence/summary.md")
    docs, readme = tables("docs/evidence.md"), tables("README.md")
    found = {cells[0]: cells[1:] for cells in docs if "table.md" in cells[0]}
    start = [cells[-1] for cells in readme].index("less best single") + 2
    shown = {cells[0]: cells[1:] for cells in readme[start:][: len(lines)]}
    for name, *cells in lines:
        (pair,) = (each for each in found if f"evidence/{name}/" in each)
        expected = figures(cells[:6] + cells[7:])
        assert figures(found[pair]) == expected
        # README leaves out the rate, arguments and the last column.
        in_short = shown[re.search(r"\[(.*)\]", pair)[1]]
        del cells[6]
        cells[2] = re.sub(r", .*", "", cells[2])
        assert figures(in_short) == figures(cells[1:-1])


def test_the_docs_have_the_figures_of_the_ablations():
    head, _, *rows = tables(
        "benchmarks/accuracy/evidence/ablations/differences.md"
    )
    assert head[3:] == ["less mhgd", "less MHGD, cross"]
    shown = {way: cells for way, *cells in tables("docs/evidence.md")}
    names = {"student": "student alone", "mhgd": "`mhgd`, as published"}
    names["MHGD, cross"] = "as in `recommended`"
    for way, accuracy, _, less_mhgd, less_cross in rows:
        cross = way.startswith("MHGD, cross")
        name = names.get(way, way.removeprefix("MHGD, cross, "))
        assert shown[name] == [accuracy, less_cross if cross else less_mhgd]
    assert len(rows) == len(evidence.ABLATIONS) + len(
        evidence.CROSS_ABLATIONS
    ) + len(names)


def made(flags):
    """The methods that flags of `training.distill` make."""
    arguments = command_line({"set": flags.get("set", {})})
    arguments = [each.removeprefix("--set=") for each in arguments]
    return options.methods(flags["method"], arguments)


@pytest.mark.parametrize("name", evidence.TABLES)
def test_ways_name_methods_and_their_arguments(name):
    """Also once they were written to a file and read from it."""
    ways = evidence.TABLES[name].ways
    again = tomllib.loads(evidence.toml(ways)).get("way", [])
    assert [each["name"] for each in again] == list(ways)
    for flags, read in zip(ways.values(), again, strict=True):
        found, expected = (
            [each.get_config() | {"name": None} for each in made(each_flags)]
            for each_flags in (read, flags)
        )
        assert found == expected


FILES = sorted((ROOT / "benchmarks/accuracy").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_ways_name_methods_and_their_arguments(path):
    ways = tomllib.loads(path.read_text())["way"]
    assert all(each["name"] and made(each) for each in ways)


def test_an_unknown_table_is_told():
    with pytest.raises(SystemExit, match="Tables are resnet, .*: resnte"):
        evidence.main(["resnte"])
