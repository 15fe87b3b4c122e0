"""Makes the tables of docs/evidence.md, or those that are named.

python -m benchmarks.evidence [table ...]

For each table, each method's main argument, its weight or the bound that its
gradient is clipped to, is searched first, on images held out of the training
set and with a teacher that hasn't seen them. Then all ways are compared.
Run folders are in `runs/evidence`: the same command again goes on where it
was ended. Tables and pictures go to `benchmarks/evidence`.
"""

import csv
import dataclasses
import io
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping

import keras_mhgd
from keras_mhgd.files import write_atomically
from training.comparison import Comparison, Way
from training.results import read_result

RUNS = pathlib.Path("runs/evidence")
RESULTS = pathlib.Path("benchmarks/evidence")
TRIALS, JOBS = 3, 2
FACTOR = 4  # from one value of a search to the next
MOST = 3  # steps of that factor away from the default

TEACHER_EPOCHS = {"glyphs": 24, "fashion_mnist": 8}
# Testing takes as long as training where few of many images are trained on.
VALIDATION_FREQ = {"glyphs": 5, "fashion_mnist": 20}

ALL = tuple(keras_mhgd.methods.names())
# On the first pair, but for review_kd, which takes ten times as long on others.
STRONGEST = (
    "soft_logits", "dkd", "dist", "kd_svdf", "overhaul", "mutual_learning",
    "mhgd",
)  # fmt: skip
CROSS = {
    "MHGD, cross": (
        "--method=mhgd --set=attention=cross --set=senses_logits=true "
        "--set=scale_logits=true --set=clipping=per_feature "
        "--set=clip_bound=0.3"
    )
}
HEADS = {
    f"MHGD, {count} head{'s' * (count > 1)}": (
        f"--method=mhgd --set=num_heads={count}"
    )
    for count in (1, 2, 4, 16)
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A pair of networks, of which `vgg_small` is the teacher.

    Attributes:
        dataset: Name of the data.
        subset: Number of training images.
        student: Name of the network.
        epochs: Of each training; a search takes half of them.
        methods: Those whose main argument is searched.
        ways: Others, by name the flags of `training.distill`.
    """

    dataset: str
    subset: int
    student: str
    epochs: int
    methods: tuple[str, ...]
    ways: Mapping[str, str]


TABLES = {
    "resnet": Table("glyphs", 2000, "resnet_small", 40, ALL, CROSS | HEADS),
    "thin": Table("glyphs", 2000, "vgg_thin", 40, STRONGEST, CROSS),
    "mobilenet": Table("glyphs", 2000, "mobilenet_small", 40, STRONGEST, CROSS),
    "glyphs_10000": Table(
        "glyphs", 10000, "resnet_small", 8, STRONGEST, CROSS
    ),
    "fashion_1000": Table(
        "fashion_mnist", 1000, "resnet_small", 40, STRONGEST, CROSS
    ),
    "fashion_5000": Table(
        "fashion_mnist", 5000, "resnet_small", 8, STRONGEST, CROSS
    ),
}  # fmt: skip


def main(names: list[str]) -> None:
    """Makes the tables of these names, or all."""
    unknown = sorted(set(names) - set(TABLES))
    if unknown:
        raise SystemExit(
            f"Tables are {', '.join(TABLES)}. Received: {', '.join(unknown)}."
        )
    for name in names or TABLES:
        folder = RESULTS / name
        folder.mkdir(parents=True, exist_ok=True)
        searched = _search(name)
        write_atomically(folder / "search.csv", _lines(searched))
        _compare(
            name, {method: best(found) for method, found in searched.items()}
        )
        for file in ("table.md", "table.csv", "result.png"):
            shutil.copy(RUNS / name / file, folder / file)


def best(found: Mapping[int, float]) -> int:
    """Gives the power of `FACTOR` that did best, of several the smallest.

    Args:
        found: Accuracies by power.
    """
    return max(sorted(found, key=abs), key=found.get)


def following(found: Mapping[int, float]) -> list[int]:
    """Gives the powers of `FACTOR` to try next: while the best is outermost.

    Args:
        found: Accuracies by power.
    """
    if not found:
        return [0, 1, -1]
    power = best(found)
    beyond = power + (1 if power > 0 else -1)
    within = power and beyond not in found and abs(beyond) <= MOST
    return [beyond] if within else []


def _search(name: str) -> dict[str, dict[int, float]]:
    """Finds accuracies on held-out images, by method and power."""
    table = TABLES[name]
    held_out = "--validation_split=0.25"
    teacher = _teacher(table.dataset, held_out)
    epochs = table.epochs // 2
    shared = _shared(table, epochs, epochs) + [held_out]
    found = {method: {} for method in table.methods}
    while new := [
        (method, power)
        for method in table.methods
        for power in following(found[method])
    ]:
        ways = [
            Way(
                f"{method} {'='.join(_main_argument(method, power))}",
                "distill",
                (
                    f"--teacher={teacher}",
                    f"--student={table.student}",
                    *_cached(method),
                    *_flags(method, power),
                ),
            )
            for method, power in new
        ]
        comparison = Comparison(RUNS / f"{name}_search", ways, shared)
        try:
            comparison.run(1, JOBS)
        except RuntimeError as error:
            # A training whose loss became infinite is as good as none.
            print(error, file=sys.stderr)
        for way, (method, power) in zip(ways, new, strict=True):
            result = read_result(comparison.folder(way, 0))
            found[method][power] = result["accuracy"] if result else 0.0
    return found


def _compare(name: str, powers: Mapping[str, int]) -> None:
    """Trains and compares all ways of a table."""
    table = TABLES[name]
    defaults = [method for method, power in powers.items() if not power]
    if "mhgd" not in defaults:
        defaults.append("mhgd")
    ways = dict(table.ways)
    for method, power in powers.items():
        if power:
            argument = " ".join(_main_argument(method, power))
            ways[f"{method}, {argument}"] = " ".join(_flags(method, power))
    _run(
        "training.compare",
        *_shared(table, table.epochs, VALIDATION_FREQ[table.dataset]),
        f"--teacher={_teacher(table.dataset)}",
        f"--student={table.student}",
        f"--trials={TRIALS}",
        f"--jobs={JOBS}",
        f"--methods=student,{','.join(defaults)},recommended",
        *(f"--way={way}: {flags}" for way, flags in ways.items()),
        f"--run={RUNS / name}",
    )


def _shared(table: Table, epochs: int, validation_freq: int) -> list[str]:
    return [
        f"--dataset={table.dataset}",
        f"--subset={table.subset}",
        f"--epochs={epochs}",
        f"--validation_freq={validation_freq}",
        "--batch_size=64",
        "--schedule=cosine",
        "--views=8",
    ]


def _teacher(dataset: str, *held_out: str) -> str:
    """Gives a `vgg_small` of all training images but those held out."""
    if dataset == "glyphs" and not held_out:
        return "saved_models/teachers/vgg_small_glyphs.keras"
    run = RUNS / f"{dataset}_teacher{'_for_search' * bool(held_out)}"
    _run(
        "training.train",
        f"--dataset={dataset}",
        *held_out,
        "--model=vgg_small",
        f"--epochs={TEACHER_EPOCHS[dataset]}",
        "--schedule=cosine",
        "--validation_freq=6",
        f"--run={run}",
    )
    return str(run)


def _main_argument(method: str, power: int) -> tuple[str, str]:
    """Gives the name of what a method is tuned by, and its value."""
    config = keras_mhgd.methods.get(method).get_config()
    name = "clip_bound" if config.get("clipping") else "weight"
    return name, f"{config[name] * FACTOR**power:g}"


def _flags(method: str, power: int) -> list[str]:
    return [
        f"--method={method}",
        f"--set={'='.join(_main_argument(method, power))}",
    ]


def _cached(method: str) -> list[str]:
    learns = keras_mhgd.methods.get(method).teacher_learns
    return [] if learns else ["--cache_teacher"]


def _run(program: str, *flags: str) -> None:
    subprocess.run([sys.executable, "-m", program, *flags], check=True)


def _lines(searched: Mapping[str, Mapping[int, float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "argument", "value", "accuracy"])
    for method, found in searched.items():
        for power in sorted(found):
            accuracy = f"{100 * found[power]:.2f}"
            writer.writerow([method, *_main_argument(method, power), accuracy])
    return text.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])
