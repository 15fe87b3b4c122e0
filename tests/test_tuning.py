import contextlib
import functools

import h5py
import keras
import keras_tuner
import numpy as np
import pytest

import keras_mhgd
from keras_mhgd.methods import MHGD, Preparation
from keras_mhgd.tuning import DistillationHyperModel, search_method

FIXED = {"mhgd": {"preparation_epochs": 1, "clipping": "per_feature"}}


@pytest.fixture
def teacher(small_net):
    return small_net("teacher")


@pytest.fixture
def hypermodel(teacher, small_net, bars, tmp_path):
    """Makes a HyperModel of small networks; its folder is `shared`."""

    def make(**changes):
        arguments = {
            "teacher": teacher,
            "student": small_net("student"),
            "data": bars,
            "directory": tmp_path / "shared",
            "methods": ["soft_logits", "mhgd"],
            "space": functools.partial(search_method, fixed=FIXED),
            "batch_size": 16,
        }
        return DistillationHyperModel(**(arguments | changes))

    return make


@pytest.fixture
def prepared(monkeypatch):
    """Heads of each MHAN that is trained."""
    run, heads = Preparation.run, []

    def counting(preparation, *args, **kwargs):
        heads.append(preparation.depends_on["num_heads"])
        run(preparation, *args, **kwargs)

    monkeypatch.setattr(Preparation, "run", counting)
    return heads


def random_search(hypermodel, directory, **changes):
    arguments = {"max_trials": 3, "seed": 1, "project_name": "random"}
    return keras_tuner.RandomSearch(
        hypermodel, "val_accuracy", directory=directory, **arguments | changes
    )


def finished(tuner):
    trials = tuner.oracle.trials.values()
    assert {trial.status for trial in trials} == {"COMPLETED"}
    return {trial.trial_id: trial for trial in trials}


def values(**chosen):
    hp = keras_tuner.HyperParameters()
    hp.values = chosen
    return hp


def arrays(path):
    found = []
    with h5py.File(path) as file:
        file.visititems(
            lambda _, each: (
                found.append(np.array(each))
                if isinstance(each, h5py.Dataset)
                else None
            )
        )
    return found


@pytest.mark.slow
def test_trials_share_the_teachers_part_and_save_the_student(
    hypermodel, prepared, tmp_path
):
    """Three trials of MHGD: two differ in what MHAN depends on."""

    def space(hp, name):
        return MHGD(
            num_heads=hp.Choice("num_heads", [2, 3]),
            weight=hp.Float("weight", 0.5, 2.0),
            preparation_epochs=1,
            clipping="per_feature",
        )

    arguments = {"methods": ["mhgd"], "space": space, "views": 2}
    tuner = random_search(hypermodel(**arguments), tmp_path, seed=4)
    tuner.search(epochs=1, verbose=0)
    trials = finished(tuner)
    heads = {
        trial.hyperparameters["mhgd/num_heads"] for trial in trials.values()
    }
    assert len(trials) == 3 and heads == {2, 3}
    assert sorted(prepared) == [2, 3]
    shared = tmp_path / "shared"
    assert len(list(shared.glob("preparations/mhan-*.keras"))) == 2
    assert (shared / "teacher" / "vectors@stage2.float32.00000.npy").exists()
    best = tuner.get_best_models()[0]
    assert isinstance(best, keras_mhgd.Distiller)
    (best_trial,) = tuner.oracle.get_best_trials()
    file = tmp_path / "random" / f"trial_{best_trial.trial_id}"
    saved = arrays(file / "checkpoint.weights.h5")
    expected = best.student.get_weights()
    assert len(saved) == len(expected)
    assert sum(map(np.sum, saved)) == pytest.approx(sum(map(np.sum, expected)))


@pytest.mark.slow
def test_hyperband(hypermodel, tmp_path):
    """Trials of the second round go on with those of the first."""
    tuner = keras_tuner.Hyperband(
        hypermodel(methods=["soft_logits", "dkd"]),
        "val_accuracy",
        max_epochs=2,
        factor=2,
        directory=tmp_path,
        project_name="hyperband",
    )
    tuner.search(verbose=0)
    trials = finished(tuner)
    assert len(trials) == 5
    (second,) = (
        trial.hyperparameters
        for trial in trials.values()
        if "tuner/trial_id" in trial.hyperparameters.values
    )
    assert second["tuner/initial_epoch"] == 1 and second["tuner/epochs"] == 2
    # A state for each setting, not for each trial.
    assert len(list((tmp_path / "shared" / "trials").iterdir())) == 4


@pytest.mark.slow
def test_bayesian_optimization(hypermodel, tmp_path):
    tuner = keras_tuner.BayesianOptimization(
        hypermodel(methods=["soft_logits"]),
        "val_accuracy",
        max_trials=3,
        num_initial_points=2,
        directory=tmp_path,
        project_name="bayesian",
    )
    tuner.search(epochs=1, verbose=0)
    assert len(finished(tuner)) == 3


class _Epochs(keras.callbacks.Callback):
    """Counts epochs; ends the process before one more than `most`."""

    def __init__(self, most):
        super().__init__()
        self.most, self.count = most, 0

    def __deepcopy__(self, memo):  # by the tuner, for each trial
        return self

    def on_epoch_begin(self, epoch, logs=None):
        if self.count == self.most:
            raise SystemExit
        self.count += 1


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(hypermodel, tmp_path):
    """In the second of two epochs of the second of two trials."""

    def search(name, most):
        model = hypermodel(
            methods=["soft_logits", "fitnet"], directory=tmp_path / name
        )
        tuner = random_search(
            model, tmp_path, max_trials=2, project_name=f"{name}_search"
        )
        epochs = _Epochs(most)
        with contextlib.suppress(SystemExit):
            tuner.search(epochs=2, verbose=0, callbacks=[epochs])
        return tuner, epochs.count

    _, before = search("killed", 3)
    found, after = search("killed", 9)
    expected, whole = search("whole", 9)
    assert (before, after, whole) == (3, 1, 4)
    scores = [
        {name: trial.score for name, trial in finished(tuner).items()}
        for tuner in (found, expected)
    ]
    assert len(scores[0]) == 2 and scores[0] == scores[1]


@pytest.mark.slow
def test_a_trial_of_another_search_is_not_gone_on_with(hypermodel, capsys):
    """In the same folder, with what no hyperparameter tells."""
    hp = values(method="soft_logits")
    changes = [
        {},
        {},
        {"learning_rate": 0.05},
        {"space": lambda hp, name: keras_mhgd.methods.SoftLogits(weight=0.5)},
        {
            "loss": keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, ignore_class=9
            )
        },
        {"optimizer": keras.optimizers.SGD},
    ]
    resumed = []
    for change in changes:
        model = hypermodel(
            **{"learning_rate": 0.1, "methods": ["soft_logits"]} | change
        )
        model.fit(hp, model.build(hp), epochs=1, verbose=2)
        resumed.append("Resuming the trial" in capsys.readouterr().out)
    assert resumed == [False, True, False, False, False, False]


@pytest.mark.slow
def test_more_epochs_go_on_exactly(hypermodel, tmp_path):
    """With the optimizer's and the method's state: one way and two ways."""
    hp = values(**{"method": "fitnet", "fitnet/weight": 0.5})
    weights, histories = [], []
    for name, rounds in (("one", [(0, 3)]), ("two", [(0, 1), (1, 3)])):
        model = hypermodel(methods=["fitnet"], directory=tmp_path / name)
        for initial_epoch, epochs in rounds:
            distiller = model.build(hp)
            history = model.fit(
                hp,
                distiller,
                epochs=epochs,
                initial_epoch=initial_epoch,
                verbose=0,
            ).history
        weights.append(distiller.student.get_weights())
        histories.append(history)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)
    for name in histories[0]:
        assert histories[0][name][1:] == histories[1][name]
    with pytest.raises(
        keras_tuner.errors.FatalValueError, match="1 of its 2 epochs"
    ):
        hp.values["fitnet/weight"] = 0.7
        model.fit(hp, model.build(hp), epochs=1, verbose=0)
        model.fit(hp, model.build(hp), epochs=4, initial_epoch=2, verbose=0)


@pytest.mark.slow
def test_a_diverging_trial_fails_and_the_search_goes_on(hypermodel, tmp_path):
    def space(hp, name):
        weight = hp.Choice("weight", [0.9, 1e38])
        return keras_mhgd.methods.SoftLogits(weight=weight)

    model = hypermodel(methods=["soft_logits"], space=space, learning_rate=0.1)
    tuner = random_search(model, tmp_path)
    tuner.search(epochs=1, verbose=0)
    trials = tuner.oracle.trials.values()
    failed = {
        trial.hyperparameters["soft_logits/weight"]
        for trial in trials
        if trial.status == "FAILED"
    }
    assert failed == {1e38}
    (message, *_) = (trial.message for trial in trials if trial.message)
    assert "must be finite" in message


def test_the_student_and_the_points_may_be_chosen(hypermodel, small_net):
    def student(hp):
        return small_net("student", widths=(hp.Choice("width", [4, 6]), 8))

    model = hypermodel(
        student=student,
        sensing_points={"all": None, "last": [("stage1", "stage2"), "stage2"]},
    )
    hp = keras_tuner.HyperParameters()
    model.build(hp)
    assert {each.name for each in hp.space} == {
        "method",
        "width",
        "learning_rate",
        "sensing_points",
        "soft_logits/weight",
        "soft_logits/temperature",
    }
    distiller = model.build(
        values(
            **{"method": "mhgd", "mhgd/num_heads": 8, "width": 4},
            sensing_points="last",
        )
    )
    assert distiller.student.get_layer("stage1").output.shape[-1] == 4
    assert distiller.sensing_points[0] == ("stage1", "stage2")
    assert distiller.methods[0].num_heads == 8
    assert distiller.methods[0].clipping == "per_feature"


def test_joined_methods_have_arguments_of_their_own(hypermodel):
    hp = values(method="mhgd+soft_logits")
    model = hypermodel(methods=["soft_logits", "mhgd+soft_logits"])
    made = model.methods_of(hp)
    assert [type(each).__name__ for each in made] == ["MHGD", "SoftLogits"]
    assert "mhgd+soft_logits/soft_logits/temperature" in hp.values
    assert "soft_logits/temperature" not in hp.values


@pytest.mark.parametrize("name", keras_mhgd.methods.names())
def test_the_defaults_of_the_search_are_those_of_the_method(name):
    (method,) = search_method(keras_tuner.HyperParameters(), name)
    found = method.get_config()
    expected = keras_mhgd.methods.get(name).get_config()
    del found["name"], expected["name"]
    assert found == expected


@pytest.mark.slow
def test_a_teacher_that_learns_is_a_copy(hypermodel, teacher):
    before = teacher.get_weights()
    model = hypermodel(methods=["mutual_learning"], views=2)
    hp = keras_tuner.HyperParameters()
    distiller = model.build(hp)
    model.fit(hp, distiller, epochs=1, verbose=0)
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        (a != b).any()
        for a, b in zip(before, distiller.teacher.get_weights(), strict=True)
    )


def test_precision_outlives_the_tuner(hypermodel, tmp_path):
    """Which resets Keras's global state before each trial."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = hypermodel(methods=["soft_logits"])
    keras.utils.clear_session()
    distiller = model.build(keras_tuner.HyperParameters())
    assert distiller.student.get_layer("stage1").compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"methods": ["mhdg"]}, ValueError, "Did you mean 'mhgd'"),
        ({"methods": []}, ValueError, r"different names. Received: .*\[\]"),
        ({"methods": ["rkd", "rkd"]}, ValueError, "different names"),
        ({"student": 3}, TypeError, "`student` must be a keras.Model or"),
        ({"learning_rate": 0}, ValueError, "`learning_rate` must be a pos"),
        ({"learning_rate": (1, 0.1)}, ValueError, r"=\(1, 0\.1\)"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ({"views": 0}, ValueError, "`views` must be 1 or more"),
        ({"space": lambda hp, name: name}, TypeError, "`space` must make a"),
        (
            {
                "space": functools.partial(
                    search_method, fixed={"mhgd": {"num_head": 3}}
                )
            },
            ValueError,
            "Did you mean 'num_heads'",
        ),
        (
            {
                "space": functools.partial(
                    search_method, fixed={"mhgd": {"clip_bound": 0}}
                )
            },
            ValueError,
            "clip_bound",
        ),
    ],
)
def test_wrong_arguments_are_refused(hypermodel, arguments, error, message):
    with pytest.raises(error, match=message):
        hypermodel(**arguments)
