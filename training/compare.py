"""Compares methods on one pair of networks, over several trials.

%s --dataset=glyphs --subset=2000
    --teacher=vgg_small_glyphs
    --student=resnet_small --methods=student,soft_logits,rkd,mhgd --trials=3
    --epochs=40 --run=runs/table

Every trial has a run folder. Run the same command again to resume an
interrupted comparison. A longer command may add methods and trials.

This command trains the teacher first, and makes a whole published table:

%s --dataset=cifar100 --teacher=resnet32
    --student=resnet8 --methods=published --trials=5 --run=runs/cifar100
"""

import os
import tomllib
from collections.abc import Mapping
from typing import Any

from absl import app, flags

import keras_mhgd

from . import commands, options
from .messages import closing
from .reports.comparison_report import Outcome
from .reports.published import published
from .runs.comparison import Comparison, Way
from .runs.flags import set_arguments
from .saved.trained import load_network, network_file

options.define_data()
options.define_training()
flags.DEFINE_string(
    "teacher",
    None,
    "Run folder, .keras file, a preset, or a network that is trained first. "
    f"Presets: {', '.join(keras_mhgd.presets.names())}. The network is one of "
    "those of --student, and trained by the same flags.",
)
flags.DEFINE_string(
    "student",
    None,
    "Network, such as resnet_small. One of "
    f"{', '.join(keras_mhgd.models.names())}.",
)
flags.DEFINE_list(
    "methods",
    ["student", "soft_logits", "mhgd"],
    "What is compared, student first. This is the student alone; others are "
    f"any of {', '.join(keras_mhgd.methods.names())}, several joined by +, or "
    "recommended. Or published: those with published results of the pair.",
)
flags.DEFINE_multi_string(
    "set",
    [],
    "An argument of a method, such as --set=mhgd.num_heads=4. It holds "
    "wherever the method is. May be given several times.",
)
flags.DEFINE_list(
    "sensing_points",
    None,
    "Layers as for distill. Stage ends if not given.",
)
flags.DEFINE_string(
    "ways",
    None,
    "A TOML file of other rows. It has tables [[way]] with a name and flags "
    "of distill, where set is a table of the method's arguments, such as "
    "set = {num_heads = 4}, or of several methods' tables, such as "
    "set = {mhgd = {num_heads = 4}}.",
)
options.define_positive("trials", 3, "Seeds of each method, from 0.")
options.define_positive("jobs", 1, "Trainings at a time.")
flags.mark_flags_as_required(["teacher", "student"])
FLAGS = flags.FLAGS


def main(argv) -> None:
    """Trains and compares the methods that the flags name."""
    if FLAGS.strategy == "multi_worker":
        raise app.UsageError(
            "A comparison needs a --strategy other than multi_worker, which is "
            "for a single training. Received: --strategy=multi_worker. Run "
            "train and distill on all workers."
        )
    # Loading these now reports wrong networks and data before any training.
    dataset = options.load_training_data()
    path, training = FLAGS.teacher, None
    networks = {"student": FLAGS.student}
    trained = os.path.exists(path) or os.sep in path
    if trained or path in keras_mhgd.presets.names():
        architecture = load_network(path).name
        networks["teacher"] = path
    else:
        architecture = options.network(path, dataset).name
        training = Way(path, "train", {"model": path})
    source, known = published(dataset.name, architecture, FLAGS.student)
    ways = _ways(networks, known)
    shared = {
        name: value
        for name, value in options.configuration().items()
        if name != "seed" and value is not None
    }
    comparison = Comparison(FLAGS.run, ways, shared, training)
    if training:
        path = comparison.folder(training, 0)
    failure = None
    try:
        comparison.run(FLAGS.trials, FLAGS.jobs)
    except RuntimeError as error:
        failure = error
    finished = comparison.finished(FLAGS.trials)
    if failure and ways[0].name not in finished:
        raise failure
    outcome = Outcome(
        comparison.directory,
        finished,
        network_file(path),
        dataset,
        f"{FLAGS.student} from {architecture} on "
        f"{len(dataset.x_train):,} {dataset.kind} of {dataset.name}",
    )
    notes = [f"Published: {source}."] if source else []
    if "teacher" in known:
        notes.append(f"Teacher, published: {known['teacher']}.")
    if FLAGS.validation_split:
        notes.append(
            f"Tested on {len(dataset.x_test):,} training {dataset.kind} that "
            f"were held out, not on the test {dataset.kind}."
        )
    if failure:
        unfinished = [way.name for way in ways if way.name not in finished]
        notes.append(f"Left out, since they failed: {'; '.join(unfinished)}.")
    outcome.write(known, " ".join(notes))
    print(f"\n{outcome.text}\nWritten to {comparison.directory}/report.html.")
    print(closing.of_comparison(outcome.rows, outcome.teacher, finished))
    data = closing.given(shared, *closing.DATA)
    best = {"model": finished[closing.best_of(outcome.rows).name][0]}
    others = {"teacher": path, "alone": finished[ways[0].name][0]}
    out = {"out": f"saved_models/{comparison.directory.name}"}
    print(
        closing.next_steps(
            ("evaluate", data | best),
            ("export", data | best | others | out),
        )
    )
    if failure:
        raise failure


def _ways(networks: Mapping[str, str], known: Mapping[str, str]) -> list[Way]:
    names = FLAGS.methods
    if names == ["published"]:
        if not known:
            raise app.UsageError(
                "--methods=published needs a pair with published results: see "
                f"docs/published.md. Received: {FLAGS.student} from "
                f"{FLAGS.teacher} on {FLAGS.dataset}."
            )
        methods = keras_mhgd.methods.names()
        names = ["student", *(each for each in known if each in methods)]
    if names[0] != "student":
        raise app.UsageError(
            "--methods must begin with student, the row that others are "
            f"compared with. Received: --methods={','.join(FLAGS.methods)}."
        )

    def distilled(name, own):
        learns = any(
            method.trains_teacher
            for method in Way(name, "distill", own).methods
        )
        # The cache is shared, so it serves only rows with the common teacher,
        # images and views.
        others = {"teacher", "subset", "views"} & own.keys()
        cached = FLAGS.views and not learns and not others
        cache = {"cache_teacher": True} if cached else {}
        return Way(name, "distill", {**networks, **cache, **own})

    points = {}
    if FLAGS.sensing_points:
        points = {"sensing_points": FLAGS.sensing_points}
    ways = [Way("student", "train", {"model": FLAGS.student})]
    given = options.method_arguments(FLAGS.set)
    unused = set(given)
    for name in names[1:]:
        parts = keras_mhgd.methods.parts(name)
        owners = {keras_mhgd.methods.name_of(each) for each in parts}
        arguments = {
            f"{owner}.{key}": value
            for owner in owners & given.keys()
            for key, value in given[owner].items()
        }
        unused -= owners
        options.methods(name, set_arguments(arguments))  # raises if invalid
        set_ = {"set": arguments} if arguments else {}
        ways.append(distilled(name, {"method": name, **points, **set_}))
    if unused:
        foreign = [
            each for each in FLAGS.set if each.partition(".")[0] in unused
        ]
        raise app.UsageError(
            "--set must be for one of --methods; those of --ways have flags of "
            f"their own. Received: --methods={','.join(FLAGS.methods)}, and "
            f"{' '.join(f'--set={each}' for each in foreign)}."
        )
    for own in _read_ways(FLAGS.ways):
        name = own.pop("name")
        if "method" in own:  # raises for invalid arguments
            options.methods(own["method"], set_arguments(own.get("set", {})))
        ways.append(distilled(name, own))
    return ways


def _read_ways(path: str | None) -> list[dict[str, Any]]:
    """Reads the names and flags of ways from a file; none without a file."""
    if path is None:
        return []
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise app.UsageError(
            f"--ways={path} must be TOML. Received: a file with an error "
            f"({error}). Correct it at this place."
        ) from error
    ways = content.get("way")
    if content.keys() != {"way"} or not all(
        isinstance(each, dict) and isinstance(each.get("name"), str)
        for each in (ways if isinstance(ways, list) else [None])
    ):
        raise app.UsageError(
            f"--ways={path} must hold tables [[way]], each with a name and "
            f"flags of distill. Received: {content}. Begin each way with "
            "[[way]] and its name."
        )
    return [_flags(way, path) for way in ways]


def _flags(way: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Checks a way's flags, and gives methods' tables in `set` by argument."""
    plain = str, int, float
    flags = dict(way)
    flags["set"] = {}
    for flag, value in way.items():
        if flag == "set" and isinstance(value, dict):
            for key, argument in value.items():
                owned = key in keras_mhgd.methods.names()
                flags["set"] |= (
                    {f"{key}.{name}": argument[name] for name in argument}
                    if owned and isinstance(argument, dict)
                    else {key: argument}
                )
        elif flag == "set" or not (
            isinstance(value, plain)
            or isinstance(value, list)
            and all(isinstance(each, plain) for each in value)
        ):
            raise app.UsageError(
                f"--ways={path} must give flags that are strings, numbers, "
                "booleans or lists of them, and `set` as a table. Received: "
                f"{flag} = {value!r} in the way {way['name']!r}."
            )
    if not flags["set"]:
        del flags["set"]
    return flags


if __name__ == "__main__":
    commands.run(main)
