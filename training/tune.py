"""Searches for the settings of a distillation with keras-tuner.

%s --dataset=glyphs --subset=2000 --views=8
    --teacher=vgg_small_glyphs
    --student=resnet_small --methods=soft_logits,dkd,mhgd --trials=20
    --epochs=20 --run=runs/search

Trials are measured on a held-out part of the training samples. The best
setting is then trained in the run folder `best`, on all training samples or the
--subset of them, with none held out. Its student is tested once.

Run the same command again to resume an interrupted search. With keras-tuner's
environment variables, several processes search together: see docs/search.md.
"""

import functools
import json
import os
import pathlib
import shlex

import keras
import keras_tuner
from absl import app, flags

import keras_mhgd
from keras_mhgd.storage.files import locked, require_writable, write_atomically

from . import commands, options
from .messages import closing
from .reports import search_report, tables
from .runs import processes
from .runs.flags import command_line
from .runs.interruption import Interruption
from .runs.progress import Progress
from .runs.run import Run
from .saved.results import read_result
from .saved.trained import load_network

_TUNERS = {
    "random": keras_tuner.RandomSearch,
    "hyperband": keras_tuner.Hyperband,
    "bayesian": keras_tuner.BayesianOptimization,
}
# A few trials may diverge. This many failures in a row show a mistake.
_MOST_FAILURES = 10

options.define_data()
flags.FLAGS.set_default("validation_split", 0.2)
options.define_training()
flags.DEFINE_string(
    "teacher",
    None,
    "Run folder, .keras file, or a preset. Presets: "
    f"{', '.join(keras_mhgd.presets.names())}.",
)
flags.DEFINE_list(
    "student",
    None,
    "Network, or several to choose from. Any of "
    f"{', '.join(keras_mhgd.models.names())}.",
)
flags.DEFINE_list(
    "methods",
    ["soft_logits", "mhgd"],
    "Methods to choose from. Any of "
    f"{', '.join(keras_mhgd.methods.names())}, several joined by +, or "
    "recommended.",
)
flags.DEFINE_multi_string(
    "set",
    [],
    "An argument that is not searched, such as --set=mhgd.num_heads=4. May be "
    "given several times.",
)
flags.DEFINE_multi_string(
    "sensing_points",
    None,
    "Layers as for distill. Given several times, the search chooses. "
    "Stage ends if not given.",
)
flags.DEFINE_enum("tuner", "random", list(_TUNERS), "How settings are chosen.")
options.define_positive(
    "trials", None, "Settings that are tried. Hyperband counts by itself."
)
options.define_positive(
    "learning_rate_factor",
    4,
    "Range of the learning rates. They are searched from --learning_rate over "
    "this to --learning_rate times this; 1 searches none.",
)
flags.mark_flags_as_required(["teacher", "student"])
flags.register_validator(
    "validation_freq",
    lambda value: value == 1,
    "--validation_freq must be 1: trials are measured after every epoch.",
)
flags.register_multi_flags_validator(
    ["tuner", "trials"],
    lambda values: (values["tuner"] == "hyperband") != bool(values["trials"]),
    "--trials must be given, but not for --tuner=hyperband, which counts by "
    "itself.",
)
FLAGS = flags.FLAGS


def main(argv) -> None:
    """Searches for the best setting of those that the flags describe."""
    with Interruption():
        _main()


def _main() -> None:
    run = Run(
        FLAGS.run,
        options.configuration(
            "teacher",
            "student",
            "methods",
            "set",
            "sensing_points",
            "tuner",
            "trials",
            "learning_rate_factor",
            program="tune",
        ),
    )
    if FLAGS.strategy == "multi_worker":
        raise app.UsageError(
            "A search needs a --strategy other than multi_worker, which is for "
            "a single training. Received: --strategy=multi_worker. Start "
            "several processes that search together by keras-tuner's "
            "variables: see docs/search.md."
        )
    if run.result:
        _report(run)
        return
    if _is_worker():
        _search(_tuner(run))
        print("The search is finished; its chief trains the best.")
        return
    with locked(run.directory):
        tuner = _tuner(run)
        run.write_config()
        _search(tuner)
        made = search_report.rows(tuner.oracle.trials.values())
        search_report.write(run.directory, made, _title())
        print(f"\n{tables.markdown(search_report.cells(made))}", flush=True)
        best = tuner.oracle.get_trial(made[0]["trial"])
        if best.score is None:
            raise RuntimeError(
                "A trial must have succeeded. All failed: see the table. Lower "
                "--learning_rate, or choose other --methods."
            )
        arguments = _arguments(tuner.hypermodel, best.hyperparameters)
        _train(run.directory / "best", arguments)
        result = read_result(run.directory / "best") | {
            "validation_accuracy": best.score,
            "hyperparameters": best.hyperparameters.values,
            "trials": len(made),
            "configuration": run.config,
        }
        text = json.dumps(result, indent=2, sort_keys=True) + "\n"
        write_atomically(run.directory / "result.json", text)
    _report(run)


def _is_worker() -> bool:
    """Checks whether another process, the chief, chooses the trials."""
    return (
        "KERASTUNER_ORACLE_IP" in os.environ
        and "chief" not in os.environ["KERASTUNER_TUNER_ID"]
    )


def _tuner(run: Run) -> keras_tuner.Tuner:
    """Makes the tuner, with the trials of an earlier run if there are any."""
    # TensorFlow configures devices only before it does anything else.
    strategy = options.strategy()
    options.start()
    dataset = options.load_training_data()
    with strategy.scope():
        teacher = load_network(FLAGS.teacher)
    if FLAGS.fused:
        keras_mhgd.models.fuse_batch_normalization(teacher)
    points = None
    if FLAGS.sensing_points:
        points = {
            each: options.sensing_points(each.split(","))
            for each in FLAGS.sensing_points
        }
    factor = FLAGS.learning_rate_factor
    rate = FLAGS.learning_rate
    hypermodel = keras_mhgd.tuning.DistillationHyperModel(
        teacher,
        lambda hp: options.network(
            hp.Choice("student", FLAGS.student), dataset
        ),
        dataset,
        run.directory / "shared",
        methods=FLAGS.methods,
        learning_rate=(rate / factor, rate * factor) if factor > 1 else rate,
        sensing_points=points,
        space=functools.partial(
            keras_mhgd.tuning.search_method,
            fixed=options.method_arguments(FLAGS.set),
        ),
        optimizer=lambda rate: options.optimizer(rate, dataset),
        batch_size=FLAGS.batch_size,
        views=FLAGS.views,
        seed=FLAGS.seed,
    )
    size = {"max_trials": FLAGS.trials}
    if FLAGS.tuner == "hyperband":
        size = {"max_epochs": FLAGS.epochs}
    return _TUNERS[FLAGS.tuner](
        hypermodel,
        keras_tuner.Objective("val_accuracy", "max"),
        seed=FLAGS.seed + 1,  # keras-tuner takes 0 for no seed
        max_consecutive_failed_trials=_MOST_FAILURES,
        distribution_strategy=strategy if FLAGS.strategy != "default" else None,
        directory=run.directory,
        project_name="search",
        **size,
    )


def _search(tuner: keras_tuner.Tuner) -> None:
    """Runs the trials that have not run yet."""
    tuner.search(
        epochs=FLAGS.epochs,
        # Each trial becomes a TensorBoard run with its hyperparameters.
        callbacks=[
            Progress(),
            keras.callbacks.TensorBoard(
                pathlib.Path(FLAGS.run, "logs"), write_graph=False
            ),
        ],
        verbose=1,
    )


def _arguments(
    hypermodel: keras_mhgd.tuning.DistillationHyperModel,
    hp: keras_tuner.HyperParameters,
) -> list[str]:
    """Gives the flags of `distill` for a trial's setting."""
    methods = hypermodel.methods_of(hp)
    learns = any(each.trains_teacher for each in methods)
    values = options.configuration() | {
        "teacher": FLAGS.teacher,
        "student": hp["student"],
        "method": hp["method"],
        "learning_rate": hp.values.get("learning_rate", FLAGS.learning_rate),
        "sensing_points": hp.values.get("sensing_points"),
        "cache_teacher": bool(FLAGS.views) and not learns,
        # The test samples are used only once, for the result.
        "validation_split": None,
        "validation_freq": FLAGS.epochs,
    }
    flags = {name: value for name, value in values.items() if value is not None}
    flags["set"] = {}
    defaults = keras_mhgd.methods.parts(hp["method"])
    for part, default in zip(methods, defaults, strict=True):
        name, config = keras_mhgd.methods.name_of(part), default.get_config()
        flags["set"] |= {
            f"{name}.{argument}": value
            for argument, value in part.get_config().items()
            if argument != "name" and value != config[argument]
        }
    return command_line(flags)


def _train(directory: pathlib.Path, arguments: list[str]) -> None:
    """Trains the best setting, from its last checkpoint if there is one."""
    # A killed search may have left this training running: wait for its end.
    with locked(require_writable(directory), wait=True):
        pass
    arguments = [*arguments, f"--run={directory}"]
    print(f"$ {commands.called('distill')} {shlex.join(arguments)}", flush=True)
    process = processes.start(commands.module("distill"), arguments)
    try:
        process.join()
    finally:
        process.terminate()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def _title() -> str:
    return (
        f"{','.join(FLAGS.student)} on {FLAGS.dataset}: "
        f"{FLAGS.tuner} search, {FLAGS.epochs} epochs"
    )


def _report(run: Run) -> None:
    result, best = run.result, run.directory / "best"
    print(
        f"{run.directory} is finished: {result['trials']} trials, the best "
        f"with validation accuracy {result['validation_accuracy']:.4f}. "
        "Trained with no sample held out, its test accuracy is "
        f"{result['accuracy']:.4f}: {best}."
    )
    print(closing.after_run(best, read_result(best)["configuration"]))


if __name__ == "__main__":
    commands.run(main)
