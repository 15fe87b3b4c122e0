"""Makes the tables of docs/evidence.md, or those that are named.

python -m benchmarks.evidence [table ...]

For each table every method's main argument, its weight or the bound that it
is clipped to, is searched first, on images held out of the training set and
with a teacher that hasn't seen them. Then `training.compare` trains all trials.
Run folders are in `runs/evidence`: what was ended goes on. What is made is
copied to `benchmarks/evidence`.
"""

import csv
import dataclasses
import io
import pathlib
import shutil
import subprocess
import sys

import keras_mhgd
from keras_mhgd.files import write_atomically
from training.comparison import Comparison, Way
from training.results import read_result

RUNS = pathlib.Path("runs/evidence")
RESULTS = pathlib.Path("benchmarks/evidence")
JOBS = 2
FACTOR = 4  # from one value of a search to the next
MOST = 3  # steps of that factor, to either side of the default

SHARED = ("--batch_size=64", "--schedule=cosine", "--views=8")
TEACHER_EPOCHS = {"glyphs": 24, "fashion_mnist": 8}
# Testing takes as long as training where few of many images are trained on.
VALIDATION_FREQ = {"glyphs": 5, "fashion_mnist": 20}
STRONGEST = (
    "soft_logits", "dkd", "dist", "kd_svdf", "overhaul", "review_kd", "mhgd",
)  # fmt: skip
ALL = tuple(keras_mhgd.methods.names())

CROSS = (
    "--method=mhgd --set=attention=cross --set=senses_logits=true "
    "--set=scale_logits=true --set=clipping=per_feature --set=clip_bound=0.3"
)
OURS = {"MHGD, cross": CROSS}
HEADS = {
    f"MHGD, {count} head{'s' * (count > 1)}": (
        f"--method=mhgd --set=num_heads={count}"
    )
    for count in (1, 2, 4, 16)
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A pair of networks on a number of images.

    Attributes:
        dataset: Name of the data.
        subset: Number of training images.
        student: Name of the network that `vgg_small` teaches.
        epochs: Of each training; a search takes half of them.
        trials: Seeds.
        methods: Those whose main argument is searched.
        ways: Others, by name the flags of `training.distill`.
    """

    dataset: str
    subset: int
    student: str
    epochs: int
    trials: int
    methods: tuple[str, ...]
    ways: dict[str, str]


TABLES = {
    "resnet": Table(
        "glyphs", 2000, "resnet_small", 40, 3, ALL, OURS | HEADS
    ),
    "thin": Table("glyphs", 2000, "vgg_thin", 40, 3, STRONGEST, OURS),
    "mobilenet": Table(
        "glyphs", 2000, "mobilenet_small", 40, 3, STRONGEST, OURS
    ),
    "glyphs_10000": Table(
        "glyphs", 10000, "resnet_small", 8, 3, STRONGEST, OURS
    ),
    "fashion_1000": Table(
        "fashion_mnist", 1000, "resnet_small", 40, 3, STRONGEST, OURS
    ),
    "fashion_5000": Table(
        "fashion_mnist", 5000, "resnet_small", 8, 3, STRONGEST, OURS
    ),
}  # fmt: skip


def main(names: list[str]) -> None:
    """Makes the tables of these names, or all."""
    unknown = set(names) - set(TABLES)
    if unknown:
        raise SystemExit(
            f"Tables are {', '.join(TABLES)}. "
            f"Received: {', '.join(sorted(unknown))}."
        )
    for name in names or TABLES:
        table = TABLES[name]
        chosen = _search(name, table)
        _compare(name, table, chosen)


def _train(*flags: str) -> None:
    subprocess.run([sys.executable, "-m", *flags], check=True)


def _teacher(dataset: str, *held_out: str) -> str:
    """Gives a `vgg_small` of all training images but those held out."""
    if dataset == "glyphs" and not held_out:
        return "saved_models/teachers/vgg_small_glyphs.keras"
    run = RUNS / f"{dataset}_teacher{'_for_search' * bool(held_out)}"
    _train(
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


def _main_argument(method: str) -> tuple[str, float]:
    """Gives what a method is tuned by, and its default."""
    config = keras_mhgd.methods.get(method).get_config()
    name = "clip_bound" if config.get("clipping") else "weight"
    return name, config[name]


def _uncached(method: str) -> tuple[str, ...]:
    learns = keras_mhgd.methods.get(method).teacher_learns
    return ("--nocache_teacher",) if learns else ()


def _search(name: str, table: Table) -> dict[str, float]:
    """Gives the value of each method's main argument that did best.

    Four times and a quarter of the default are tried beside it, and more
    while the best is the last at its end.
    """
    held_out = "--validation_split=0.25"
    teacher = _teacher(table.dataset, held_out)
    epochs = table.epochs // 2
    shared = [
        f"--dataset={table.dataset}",
        held_out,
        f"--subset={table.subset}",
        f"--epochs={epochs}",
        f"--validation_freq={epochs}",
        *SHARED,
    ]
    tried = {method: [-1, 0, 1] for method in table.methods}
    found = {}

    def way(method, power):
        argument, default = _main_argument(method)
        value = default * FACTOR**power
        return Way(
            f"{method} {argument} {value:g}",
            "distill",
            (
                f"--teacher={teacher}",
                f"--student={table.student}",
                "--cache_teacher",
                *_uncached(method),
                f"--method={method}",
                f"--set={argument}={value:g}",
            ),
        )

    while True:
        new = [
            (method, power)
            for method, powers in tried.items()
            for power in powers
            if (method, power) not in found
        ]
        if not new:
            break
        ways = {each: way(*each) for each in new}
        comparison = Comparison(
            RUNS / f"{name}_search", list(ways.values()), shared
        )
        # A training that fails is a result here: its loss is not finite.
        failed = None
        try:
            comparison.run(1, JOBS)
        except RuntimeError as error:
            failed = error
        for each in new:
            result = read_result(comparison.folder(ways[each], 0))
            if result is None and failed is None:
                raise RuntimeError(f"No result of {ways[each].name}.")
            found[each] = result["accuracy"] if result else 0.0
        for method, powers in tried.items():
            best = max(powers, key=lambda power: found[method, power])
            if best in (min(powers), max(powers)) and abs(best) < MOST:
                powers.append(best + (1 if best > 0 else -1))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "argument", "value", "accuracy"])
    chosen = {}
    for method, powers in tried.items():
        argument, default = _main_argument(method)
        for power in sorted(powers):
            value = f"{default * FACTOR**power:g}"
            writer.writerow(
                [method, argument, value, f"{100 * found[method, power]:.2f}"]
            )
        # Among equals the one nearest to the default.
        chosen[method] = max(
            sorted(powers, key=abs), key=lambda power: found[method, power]
        )
    (RESULTS / name).mkdir(parents=True, exist_ok=True)
    write_atomically(RESULTS / name / "search.csv", text.getvalue())
    return chosen


def _compare(name: str, table: Table, chosen: dict[str, int]) -> None:
    """Trains and compares all ways of a table."""
    defaults = [each for each, power in chosen.items() if not power]
    defaults += [] if "mhgd" in defaults else ["mhgd"]
    ways = dict(table.ways)
    for method, power in chosen.items():
        if power:
            argument, default = _main_argument(method)
            value = default * FACTOR**power
            ways[f"{method}, {argument} {value:g}"] = " ".join(
                [
                    *_uncached(method),
                    f"--method={method}",
                    f"--set={argument}={value:g}",
                ]
            )
    run = RUNS / name
    _train(
        "training.compare",
        f"--dataset={table.dataset}",
        f"--subset={table.subset}",
        f"--teacher={_teacher(table.dataset)}",
        f"--student={table.student}",
        f"--epochs={table.epochs}",
        *SHARED,
        f"--validation_freq={VALIDATION_FREQ[table.dataset]}",
        f"--trials={table.trials}",
        f"--jobs={JOBS}",
        f"--methods=student,{','.join(defaults)},recommended",
        *(f"--way={way}: {flags}" for way, flags in ways.items()),
        f"--run={run}",
    )
    for file in ("table.md", "table.csv", "result.png"):
        shutil.copy(run / file, RESULTS / name / file)


if __name__ == "__main__":
    main(sys.argv[1:])
