"""Makes the tables of docs/evidence.md, all or the named ones.

python -m benchmarks.accuracy.evidence [table ...]

Most tables begin with a search. It tests on images held out of the training
set, and its teacher hasn't seen them. First it finds the learning rate with the
best mean accuracy of the student alone and the student with soft_logits. At
that rate, it then finds each method's main argument: its weight, or the bound
that its gradient is clipped to.

After the search, all ways are compared. Then recommended is compared over more
trials with the best single methods, and with its own parts without MHGD. At
last, MHGD with fixed signs of the singular vectors is compared with MHGD as
published, where the signs vary from sample to sample.

Run folders are in `runs/evidence`. Run the same command again to resume. Tables
and pictures go to `benchmarks/accuracy/evidence`, and a summary of all tables
to its `summary.md`.
"""

import csv
import dataclasses
import io
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras_mhgd
from benchmarks.accuracy import summary
from keras_mhgd.storage.files import write_atomically
from training.runs.comparison import Comparison, Way
from training.runs.flags import Flags, command_line
from training.saved.results import read_result

RUNS = pathlib.Path("runs/evidence")
RESULTS = summary.RESULTS
CLOSE_TRIALS, SIGNS_TRIALS, JOBS = 10, 5, 2
FACTOR = 4  # ratio of neighbouring values of a search
MOST = 3  # powers of FACTOR away from the default
LEARNING_RATE = 0.1

TEACHER_EPOCHS = {"glyphs": 24, "fashion_mnist": 8}
# Epochs from one test to the next. With few training images of a large set, a
# test takes as long as an epoch.
VALIDATION_FREQ = {"glyphs": 5, "fashion_mnist": 20}

ALL = tuple(name for name in keras_mhgd.methods.names() if name != "mhgd_cross")
# The strongest methods on the first pair, without review_kd, which takes
# several times as long.
STRONGEST = (
    "soft_logits", "dkd", "dist", "kd_svdf", "overhaul", "mutual_learning",
    "mhgd",
)  # fmt: skip
# The committed tables were made with fixed signs of the teacher's singular
# vectors, unlike the published code: see docs/evidence.md.
_VARIANT = {"fix_signs": True}


def _mhgd(variant: Flags | None = None, **arguments: Any) -> dict[str, Any]:
    """Gives the flags of published MHGD with the given changes."""
    variant = _VARIANT | (variant or {})
    return {"method": "mhgd", "set": {"variant": variant, **arguments}}


def _cross(**arguments: Any) -> dict[str, Any]:
    return {"method": "mhgd_cross", "set": arguments}


# What a cache keeps would be the same in all epochs.
VARIED_SIGNS = {"method": "mhgd", "cache_teacher": False}
CROSS = {"MHGD, cross": {"method": "mhgd_cross"}}
# Compared with recommended: its parts, alone and in pairs.
OURS = CROSS | {
    summary.WITHOUT_MHGD: {"method": "soft_logits+dist"},
    "MHGD, cross + soft_logits": {"method": "mhgd_cross+soft_logits"},
    "MHGD, cross + dist": {"method": "mhgd_cross+dist"},
}
HEADS = {
    f"MHGD, {count} head{'s' * (count > 1)}": _mhgd(num_heads=count)
    for count in (1, 2, 4, 16)
}
UNTUNED = {
    "soft_logits": {"method": "soft_logits"},
    "soft_logits, weight 4": {"method": "soft_logits", "set": {"weight": 4}},
    "dkd": {"method": "dkd"},
    "recommended": {"method": "recommended"},
} | CROSS
# Changes of published MHGD. Another batch size also means another number of
# steps.
ABLATIONS = {
    "no tanh": _mhgd({"logit_activation": "linear"}),
    "scaled logits": _mhgd(scale_logits=True),
    "published formula's clipping": _mhgd(clipping="formula"),
    "not clipped": _mhgd(clipping=None),
    "mean, clipped": _mhgd({"reduction": "mean"}),
    "mean, not clipped": _mhgd({"reduction": "mean"}, clipping=None),
    "clipped per feature": _mhgd(clipping="per_feature"),
    "clipped to 0.3": _mhgd(clip_bound=0.3),
    "clipped to 2": _mhgd(clip_bound=2),
    "varied signs": VARIED_SIGNS,
    "published gradient": _mhgd({"svd_gradient": "published"}),
    "MHAN of 10 epochs": _mhgd(preparation_epochs=10),
    "MHAN of 80 epochs": _mhgd(preparation_epochs=80),
    "batch statistics": _mhgd({"statistics": "batch"}),
    "batch of 16": _mhgd() | {"batch_size": 16},
    "batch of 128": _mhgd() | {"batch_size": 128},
    "logits as a point": _mhgd({"senses_logits": True}),
    "cross attention": _cross(
        variant={"senses_logits": False},
        scale_logits=False,
        clipping="per_variable",
        clip_bound=1,
    ),
    "graphs of a quarter": _mhgd(graph_scope="replica")
    | {"strategy": "mirrored", "cpu_devices": 4},
}
CROSS_ABLATIONS = {
    "own attention": _mhgd(
        {"senses_logits": True},
        scale_logits=True,
        clipping="per_feature",
        clip_bound=0.3,
    ),
    "logits no point": _cross(variant={"senses_logits": False}),
    "logits not scaled": _cross(scale_logits=False),
    "clipped per variable": _cross(clipping="per_variable"),
    "clipped to 0.1": _cross(clip_bound=0.1),
    "clipped to 1": _cross(clip_bound=1),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Describes a table: a student of `vgg_small`, its data and methods.

    Attributes:
        dataset: Name of the data.
        subset: Number of training images.
        student: Name of the network.
        epochs: Epochs of each training; a search uses half as many.
        methods: Methods whose main argument is searched. Without methods there
            is no search, the learning rate is 0.1, and the ways are `mhgd` and
            `ways`.
        ways: Further ways: by name, flags of `training.distill`.
        trials: Number of seeds.
    """

    dataset: str
    subset: int
    student: str
    epochs: int
    methods: tuple[str, ...]
    ways: Mapping[str, Flags] = dataclasses.field(default_factory=dict)
    trials: int = 3


TABLES = {
    "resnet": Table("glyphs", 2000, "resnet_small", 40, ALL, HEADS, 5),
    "thin": Table("glyphs", 2000, "vgg_thin", 40, STRONGEST),
    "mobilenet": Table("glyphs", 2000, "mobilenet_small", 40, STRONGEST),
    "glyphs_10000": Table("glyphs", 10000, "resnet_small", 8, STRONGEST),
    "fashion_1000": Table("fashion_mnist", 1000, "resnet_small", 40, STRONGEST),
    "fashion_5000": Table("fashion_mnist", 5000, "resnet_small", 8, STRONGEST),
    "untuned_resnet": Table("glyphs", 2000, "resnet_small", 40, (), UNTUNED),
    "untuned_thin": Table("glyphs", 2000, "vgg_thin", 40, (), UNTUNED),
    "untuned_mobilenet": Table(
        "glyphs", 2000, "mobilenet_small", 40, (), UNTUNED
    ),
    "ablations": Table(
        "glyphs", 2000, "resnet_small", 20, (),
        ABLATIONS
        | CROSS
        | {
            f"MHGD, cross, {way}": flags
            for way, flags in CROSS_ABLATIONS.items()
        },
    ),
}  # fmt: skip


def main(names: list[str]) -> None:
    """Makes the tables of these names, or all tables."""
    unknown = sorted(set(names) - set(TABLES))
    if unknown:
        raise SystemExit(
            f"Tables are {', '.join(TABLES)}. Received: {', '.join(unknown)}."
        )
    for name in names or TABLES:
        folder = RESULTS / name
        folder.mkdir(parents=True, exist_ok=True)
        rate, powers = _rate(0), {}
        if TABLES[name].methods:
            search = _Search(name)
            rate = _rate(best(search.rates()))
            found = search.arguments(rate)
            write_atomically(folder / "search.csv", search.text())
            powers = {method: best(found[method]) for method in found}
        ways = _ways(TABLES[name], powers)
        _compare(name, rate, ways, TABLES[name].trials)
        # The close comparison is outdated if other methods are best now.
        for ending in ("md", "csv"):
            (folder / f"close.{ending}").unlink(missing_ok=True)
        shutil.copy(RUNS / name / "result.png", folder)
        _keep(name, "table")
        if TABLES[name].methods:
            singles = summary.best_singles(folder / "table.csv")
            close = (*singles, summary.WITHOUT_MHGD, "recommended")
            chosen = {way: ways[way] for way in close}
            _compare(name, rate, chosen, CLOSE_TRIALS)
            _keep(name, "close")
            both = {"mhgd": _mhgd(), "mhgd, varied signs": VARIED_SIGNS}
            _compare(name, rate, both, SIGNS_TRIALS)
            _keep(name, "signs")
        summary.main(RESULTS)


def best(found: Mapping[int, float]) -> int:
    """Gives the best power of `FACTOR`; of equal ones, that nearest to 0.

    Args:
        found: Accuracies by power.
    """
    return max(sorted(found, key=abs), key=found.get)


def following(found: Mapping[int, float]) -> list[int]:
    """Gives the powers of `FACTOR` to try next.

    The search continues beyond the best power while it is the outermost one,
    at most up to `MOST`.

    Args:
        found: Accuracies by power.
    """
    if not found:
        return [0, 1, -1]
    power = best(found)
    beyond = power + (1 if power > 0 else -1)
    within = power and beyond not in found and abs(beyond) <= MOST
    return [beyond] if within else []


class _Search:
    """Trains a table's student and tests it on held-out images."""

    def __init__(self, name: str):
        self._table = table = TABLES[name]
        self._folder = RUNS / f"{name}_search"
        held_out = {"validation_split": 0.25}
        self._teacher = _teacher(table.dataset, held_out)
        epochs = table.epochs // 2
        self._shared = _shared(table, epochs, epochs) | held_out
        self._accuracies = {}

    def rates(self) -> dict[int, float]:
        """Sums accuracies of alone and soft_logits, by power of the rate."""
        found = {}
        while new := following(found):
            ways = {
                power: [
                    self._way(each, "learning_rate", _rate(power), _rate(power))
                    for each in ("student", "soft_logits")
                ]
                for power in new
            }
            self._train([way for both in ways.values() for way in both])
            for power, both in ways.items():
                found[power] = sum(self._accuracies[way.name] for way in both)
        return found

    def arguments(self, rate: str) -> dict[str, dict[int, float]]:
        """Finds the accuracies by method and power of its main argument."""
        found = {method: {} for method in self._table.methods}
        while new := [
            (method, power)
            for method in found
            for power in following(found[method])
        ]:
            ways = [
                self._way(method, *_main_argument(method, power), rate)
                for method, power in new
            ]
            self._train(ways)
            for way, (method, power) in zip(ways, new, strict=True):
                found[method][power] = self._accuracies[way.name]
        return found

    def text(self) -> str:
        """Writes all accuracies of the search as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", "argument", "value", "accuracy"])
        methods = ["student", "soft_logits", *self._table.methods]

        def order(row):
            method, argument, value, _ = row
            return methods.index(method), argument, float(value)

        rows = [
            [*name.split(), f"{100 * accuracy:.2f}"]
            for name, accuracy in self._accuracies.items()
        ]
        writer.writerows(sorted(rows, key=order))
        return text.getvalue()

    def _way(self, method: str, argument: str, value: str, rate: str) -> Way:
        name = f"{method} {argument} {value}"
        flags = {"learning_rate": float(rate)}
        if method == "student":
            return Way(name, "train", flags | {"model": self._table.student})
        flags |= {"teacher": self._teacher, "student": self._table.student}
        flags |= _mhgd() if method == "mhgd" else {"method": method}
        if argument != "learning_rate":
            arguments = {argument: float(value)}
            flags["set"] = flags.get("set", {}) | arguments
        if not any(
            each.trains_teacher for each in keras_mhgd.methods.parts(method)
        ):
            flags["cache_teacher"] = True
        return Way(name, "distill", flags)

    def _train(self, ways: Sequence[Way]) -> None:
        comparison = Comparison(self._folder, ways, self._shared)
        failed = None
        try:
            comparison.run(1, JOBS)
        except RuntimeError as error:
            # A training fails if its loss becomes infinite; its accuracy is 0.
            failed = error
        for way in ways:
            result = read_result(comparison.folder(way, 0))
            self._accuracies[way.name] = result["accuracy"] if result else 0.0
        if failed:
            if not any(self._accuracies.values()):
                raise failed
            print(failed, file=sys.stderr)


def _ways(table: Table, powers: Mapping[str, int]) -> dict[str, Flags]:
    """Gives a table's ways by name: flags, empty for a method's defaults."""
    ways = {method: {} for method, power in powers.items() if not power}
    ways |= {"mhgd": _mhgd()}
    if table.methods:
        ways |= {"recommended": {}} | OURS
    ways |= table.ways
    for method, power in powers.items():
        if power:
            argument, value = _main_argument(method, power)
            flags = _mhgd() if method == "mhgd" else {"method": method}
            arguments = flags.get("set", {}) | {argument: float(value)}
            ways[f"{method}, {argument} {value}"] = flags | {"set": arguments}
    return ways


def _compare(
    name: str, rate: str, ways: Mapping[str, Flags], trials: int
) -> None:
    """Compares ways of a table with the student alone.

    Afterwards it deletes the table's teacher caches: feature maps of all views
    and seeds, gigabytes.
    """
    table = TABLES[name]
    defaults = [way for way, flags in ways.items() if not flags]
    RUNS.mkdir(parents=True, exist_ok=True)
    file = RUNS / f"{name}.toml"
    write_atomically(file, toml(ways))
    _run(
        "training.compare",
        _shared(table, table.epochs, VALIDATION_FREQ[table.dataset])
        | {
            "learning_rate": rate,
            "teacher": _teacher(table.dataset),
            "student": table.student,
            "trials": trials,
            "jobs": JOBS,
            "methods": ["student", *defaults],
            "ways": file,
            "run": RUNS / name,
        },
    )
    for cache in RUNS.glob(f"{name}*/teacher_*"):
        shutil.rmtree(cache)


def _keep(name: str, file: str) -> None:
    """Copies the table that was made last beside the others."""
    for ending in ("md", "csv"):
        shutil.copy(
            RUNS / name / f"table.{ending}", RESULTS / name / f"{file}.{ending}"
        )


def toml(ways: Mapping[str, Flags]) -> str:
    """Writes the ways that have flags as TOML for `training.compare --ways`.

    TOML has no `None`. It becomes the text "null", which `--set` reads as
    `None`.
    """

    def text(value):
        if isinstance(value, Mapping):
            inner = [f"{name} = {text(value[name])}" for name in value]
            return f"{{{', '.join(inner)}}}"
        return json.dumps("null" if value is None else value)

    return "\n".join(
        "".join(
            ["[[way]]\n"]
            + [
                f"{flag} = {text(value)}\n"
                for flag, value in {"name": name, **flags}.items()
            ]
        )
        for name, flags in ways.items()
        if flags
    )


def _shared(table: Table, epochs: int, validation_freq: int) -> dict[str, Any]:
    return {
        "dataset": table.dataset,
        "subset": table.subset,
        "epochs": epochs,
        "validation_freq": validation_freq,
        "batch_size": 64,
        "schedule": "cosine",
        "views": 8,
    }


def _teacher(dataset: str, held_out: Flags | None = None) -> str:
    """Gives a `vgg_small` trained on the images that are not held out."""
    if dataset == "glyphs" and not held_out:
        return "saved_models/teachers/vgg_small_glyphs.keras"
    run = RUNS / f"{dataset}_teacher{'_for_search' * bool(held_out)}"
    _run(
        "training.train",
        {
            "dataset": dataset,
            **(held_out or {}),
            "model": "vgg_small",
            "epochs": TEACHER_EPOCHS[dataset],
            "schedule": "cosine",
            "validation_freq": 6,
            "run": run,
        },
    )
    return str(run)


def _rate(power: int) -> str:
    return f"{LEARNING_RATE * FACTOR**power:g}"


def _main_argument(method: str, power: int) -> tuple[str, str]:
    """Gives the name and value of the argument that tunes a method."""
    config = keras_mhgd.methods.get(method).get_config()
    name = "clip_bound" if config.get("clipping") else "weight"
    return name, f"{config[name] * FACTOR**power:g}"


def _run(program: str, flags: Flags) -> None:
    arguments = command_line(flags)
    subprocess.run([sys.executable, "-m", program, *arguments], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
