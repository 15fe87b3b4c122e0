"""The programs as a user runs them: in processes of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from tensorboard.plugins.hparams import plugin_data_pb2

import keras_mhgd
from benchmarks.accuracy import archive
from tests.training.launcher import started
from tests.training.pages import assert_self_contained
from tests.training.runs import (
    PREPARATION,
    TEACHER,
    assert_same_run,
    command,
    read_rows,
    run,
    weights,
)
from training.messages import closing

pytestmark = pytest.mark.slow


def test_a_run_leaves_its_files(student):
    names = {path.name for path in student.iterdir()}
    assert names - {".lock"} == {
        "attention.npz",
        "attention.png",
        "best.keras",
        "checkpoints",
        "config.json",
        "last.keras",
        "logs",
        "metrics.csv",
        "mhan.keras",
        "predictions.npz",
        "report.html",
        "result.json",
        "teacher.json",
    }
    result = json.loads((student / "result.json").read_text())
    rows = read_rows(student)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert result["accuracy"] == float(rows[-1]["val_accuracy"])
    assert result["best_accuracy"] == max(
        float(row["val_accuracy"]) for row in rows
    )
    assert result["epochs"] == 4
    assert (
        result["parameters"]
        == keras.saving.load_model(student / "last.keras").count_params()
    )
    assert result["configuration"]["student"] == "resnet_small"
    measured = json.loads((student / "teacher.json").read_text())["teacher"]
    assert result["teacher"] == measured
    taught = json.loads((student.parent / "teacher/result.json").read_text())
    for name in ("accuracy", "parameters"):
        assert measured[name] == pytest.approx(taught[name])
    assert {"loss", "task_loss", "mhgd", "learning_rate"} <= rows[0].keys()
    with np.load(student / "predictions.npz") as found:
        right = found["labels"] == found["predicted"]
    assert right.mean() == pytest.approx(result["accuracy"])
    assert_self_contained((student / "report.html").read_text())


def test_a_distillation_says_its_facts_and_its_gain(said, student, teacher):
    lines = said.splitlines()
    result = json.loads((student / "result.json").read_text())
    count, taught = result["parameters"], result["teacher"]
    share = f"{100 * count / taught['parameters']:.0f} % of the teacher's"
    accuracy = f"{100 * taught['accuracy']:.2f} %"
    assert lines[:6] == [
        f"Teacher: vgg_small from {teacher}, {accuracy} of the 30 test images",
        f"Student: resnet_small, {count:,} parameters, {share} "
        f"{taught['parameters']:,}",
        "Method: mhgd, num_heads=2, preparation_epochs=2",
        "Sensing points, student <- teacher: stage1 <- stage1, "
        "stage2 <- stage2, stage3 <- stage3",
        f"Data: 60 training images of {student.parent}/bars.npz, tested on 30 "
        "test images",
        f"Written to: {student}",
    ]
    end = closing.of_run(student, result).splitlines()
    assert lines[-6:] == end
    starts = [line.partition(":")[0] for line in end[1:4]]
    assert starts == ["Gained", "Costs", "Next"]


def events(path):
    """What TensorBoard's own reader finds: (step, tensor) pairs by tag."""
    reader = EventAccumulator(str(path), size_guidance={"tensors": 0})
    reader.Reload()
    return {
        tag: [
            (each.step, tf.make_ndarray(each.tensor_proto))
            for each in reader.Tensors(tag)
        ]
        for tag in reader.Tags()["tensors"]
    }


def test_tensorboard_reads_a_run(student):
    rows = read_rows(student)
    for part, columns in (
        (
            "train",
            ["loss", "task_loss", "mhgd", "accuracy", "learning_rate"],
        ),
        ("validation", ["val_loss", "val_accuracy"]),
    ):
        found = events(student / "logs" / part)
        for column in columns:
            series = found[f"epoch_{column.removeprefix('val_')}"]
            assert [step for step, _ in series] == [0, 1, 2, 3]
            assert [float(value) for _, value in series] == pytest.approx(
                [float(row[column]) for row in rows], rel=1e-6
            )
    found = events(student / "logs" / "attention")
    tags = {"attention", "attended images", "heads/stage1 → stage2"}
    assert tags | {"attention_divergence/stage2 → stage3"} <= found.keys()
    assert [step for step, _ in found["attention"]] == [0, 1, 2, 3, 4]


def test_a_run_is_a_trial_of_the_hparams_dashboard(student):
    reader = EventAccumulator(str(student / "logs")).Reload()
    content = reader.SummaryMetadata("_hparams_/session_start_info")
    start = plugin_data_pb2.HParamsPluginData.FromString(
        content.plugin_data.content
    ).session_start_info
    values = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in start.hparams.items()
    }
    assert values["method"] == "mhgd" and values["seed"] == 0
    assert values["num_heads"] == 2 and values["student"] == "resnet_small"
    result = json.loads((student / "result.json").read_text())
    ((_, accuracy),) = events(student / "logs")["accuracy"]
    assert accuracy == pytest.approx(result["accuracy"])


def test_a_finished_run_says_so(student, distill):
    before = (student / "last.keras").stat().st_mtime_ns
    output = run("distill", *distill, f"--run={student}")
    assert "is finished: accuracy" in output
    assert (student / "last.keras").stat().st_mtime_ns == before


def test_a_run_of_an_earlier_version_goes_on(folder, student, distill):
    """It has no file of the teacher's accuracy."""
    path = folder / "earlier"
    shutil.copytree(student, path)
    for name in ("teacher.json", "result.json"):
        (path / name).unlink()
    output = run("distill", *distill, f"--run={path}")
    assert f"Resuming {path} after epoch 4." in output
    for name in ("teacher.json", "result.json"):
        text = (student / name).read_text()
        assert (path / name).read_text() == text


def test_programs_print_their_own_lines_alone(folder, data, teacher):
    """And so do the trainings that they start."""
    arguments = [f"--teacher={teacher}", "--student=vgg_thin", "--epochs=1"]
    arguments += ["--trials=1", "--methods=student,soft_logits"]
    variables = dict(os.environ)
    del variables["TF_CPP_MIN_LOG_LEVEL"]
    done = subprocess.run(
        command("compare", *data, *arguments, f"--run={folder}/quiet"),
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    own = r"\w+_0 \| |\$ python -m training|\||Test accuracy in|Written to "
    own += "|Gained: |Costs: |Next:$|  python -m training|$"
    for line in done.stdout.splitlines():
        assert re.match(own, line), line
    assert done.stdout.count("Epoch 1/1") == 2


def test_two_devices_train_like_one(folder, distill):
    # Steps are short, as round-off grows from each to the next.
    arguments = [*distill, "--epochs=1", "--learning_rate=0.001"]
    paths = folder / "one_device", folder / "two_devices"
    run("distill", *arguments, "--nofused", f"--run={paths[0]}")
    arguments += ["--strategy=mirrored", "--cpu_devices=2"]
    run("distill", *arguments, f"--run={paths[1]}")
    for a, b in zip(*map(weights, paths), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    odd = [*arguments, "--batch_size=15", f"--run={folder}/odd"]
    output = run("distill", *odd, fails=True)
    assert "must be a multiple of the number of devices" in output
    arguments += [f"--run={paths[1]}", "--cpu_devices=4"]
    output = run("distill", *arguments, fails=True)
    assert "(cpu_devices: 2 there, 4 now)" in output
    output = run("distill", *distill, "--cpu_devices=2", "--run=x", fails=True)
    assert "--cpu_devices needs --strategy=mirrored" in output


def test_another_configuration_is_refused(student, distill):
    output = run(
        "distill", *distill, f"--run={student}", "--seed=7", fails=True
    )
    assert "must hold a run of this configuration. Received: a run of" in output
    assert "another configuration (seed: 0 there, 7 now). Choose" in output


def test_tests_after_some_epochs_only(folder, data):
    path = folder / "seldom"
    flags = ["--model=resnet_small", "--epochs=3", "--validation_freq=2"]
    run("train", *data, *flags, f"--run={path}")
    accuracies = [row["val_accuracy"] for row in read_rows(path)]
    assert accuracies[0] == ""
    result = json.loads((path / "result.json").read_text())
    assert result["accuracy"] == float(accuracies[2])
    assert result["best_accuracy"] == max(map(float, accuracies[1:]))


def test_the_seed_changes_the_run(folder, data, teacher):
    path = folder / "other_seed"
    run("train", *data, *TEACHER, "--seed=1", f"--run={path}")
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(weights(path), weights(teacher), strict=True)
    )


@pytest.fixture(scope="module")
def exported(folder, data, student, teacher):
    """Folder of the student in all formats, and what the program printed."""
    out = folder / "exported"
    output = run(
        "export",
        *data,
        f"--model={student}",
        f"--teacher={teacher}",
        f"--alone={student}/best.keras",
        f"--formats={','.join(FORMATS)}",
        "--uint8_input",
        "--least_agreement=tflite_dynamic_int8=0.9",
        "--least_agreement=tflite_int8=0.9",
        f"--out={out}",
    )
    return out, output


FORMATS = keras_mhgd.export.names()


def test_exports_and_evaluates_every_format(data, student, exported):
    out, output = exported
    # Nothing of a converter's log comes first.
    assert output.startswith("saved_model: ")
    assert output.count("the Keras model's class for 100.00%") >= 4
    accuracy = json.loads((student / "result.json").read_text())["accuracy"]
    figures = json.loads((out / "export.json").read_text())
    assert [file["format"] for file in figures["files"]] == FORMATS
    assert list(figures["compared"]) == ["teacher", "student alone"]
    for file in figures["files"]:
        if "int8" not in file["format"]:
            assert file["accuracy"] == pytest.approx(accuracy)
        printed = run("evaluate", *data, f"--model={out / file['path']}")
        assert printed.startswith(
            f"{out / file['path']}: accuracy {file['accuracy']:.4f} on 30 test "
        )
    for model in (student, student / "last.keras"):
        printed = run("evaluate", *data, f"--model={model}")
        assert f"accuracy {accuracy:.4f} on 30 test images" in printed
    assert (out / "accuracy.png").stat().st_size > 10_000
    held_out = [*data, "--validation_split=0.5"]
    printed = run("evaluate", *held_out, f"--model={student}")
    assert "on 30 held-out training images" in printed
    wrong = [f"--model={student}", f"--out={out}"]
    printed = run("export", *held_out, *wrong, fails=True)
    assert "--validation_split is for choosing settings" in printed
    assert "Received: 0.5. Leave it out." in printed


def test_the_model_card_says_what_and_how(exported):
    """Its code runs, where nothing but the files is."""
    out, _ = exported
    card = (out / "README.md").read_text()
    assert card.startswith(
        "# resnet_small on bars.npz\n\nAn image classifier of "
    )
    assert (
        "parameters and 3 classes, trained on all images of bars.npz for 4 "
        in (card)
    )
    assert "by the method `mhgd` (num_heads=2, preparation_epochs=2)" in card
    for name in (*(f"`{name}`" for name in FORMATS), "teacher"):
        assert f"\n| {name} | " in card
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 4
    code = "\n".join(f"exec({block!r}, {{}})" for block in blocks)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=out,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[") >= 5


def test_a_file_without_a_run_and_a_wrong_flag(folder, data, student):
    out = folder / "plain"
    run(
        "export",
        *data,
        f"--model={student}/best.keras",
        "--formats=tflite",
        f"--out={out}",
    )
    flags = [f"--model={student}", "--least_agreement=0.9", f"--out={out}"]
    output = run("export", *data, *flags, fails=True)
    assert "--least_agreement must be format=fraction, such as" in output
    card = (out / "README.md").read_text()
    assert "How it was trained is not recorded." in card
    assert "SavedModel" not in card.partition("## Use")[2].partition("## P")[0]


def test_mixed_precision_and_export(folder, data, teacher):
    path = folder / "half"
    run(
        "distill",
        *data,
        f"--teacher={teacher}",
        "--student=resnet_small",
        "--epochs=1",
        PREPARATION,
        "--precision=mixed_bfloat16",
        f"--run={path}",
    )
    output = run("export", *data, f"--model={path}", f"--out={path}/exported")
    assert output.count("the Keras model's class for") == 2


def test_arguments_of_the_method_and_sensing_points(folder, data, teacher):
    path = folder / "arguments"
    run(
        "distill",
        *data,
        f"--teacher={teacher}",
        "--student=resnet_small",
        "--epochs=1",
        "--set=preparation_epochs=1",
        '--set=variant={"logit_activation": "linear", "reduction": "mean"}',
        "--set=clipping=null",
        "--sensing_points=stage2:stage2_pool,stage3",
        "--gradient_norms",
        "--profile=2,3",
        f"--run={path}",
    )
    (row,) = read_rows(path)
    assert float(row["task_gradient"]) > 0 < float(row["transfer_gradient"])
    assert float(row["clipped"]) == 0
    assert "epoch_transfer_gradient" in events(path / "logs" / "train")
    assert list(path.glob("logs/**/plugins/profile/*/*.xplane.pb"))
    mhan = keras.saving.load_model(path / "mhan.keras")
    assert mhan.sizes == [32, 64]


def test_a_cached_teacher(folder, distill):
    """Two views of each image, in memory and in a folder."""
    cache = ["--views=2", "--cache_teacher"]
    run("distill", *distill, "--views=2", f"--run={folder}/uncached")
    run("distill", *distill, *cache, f"--run={folder}/cached")
    cache.append(f"--cache_dir={folder}/features")
    run("distill", *distill, *cache, f"--run={folder}/filed")
    expected = read_rows(folder / "uncached")
    for name in ("cached", "filed"):
        for found, row in zip(
            read_rows(folder / name)[:2], expected[:2], strict=True
        ):
            found, row = (
                {key: float(value) for key, value in each.items()}
                for each in (found, row)
            )
            assert found == pytest.approx(row, rel=1e-6)
    assert (folder / "features" / "vectors@stage2.float32.00000.npy").exists()
    distill = [*distill, *cache, "--seed=1", f"--run={folder}/foreign"]
    output = run("distill", *distill, fails=True)
    assert "teacher cache" in output and "seed: 0 there, 1 now" in output


def test_what_was_learnt_from_the_teacher_is_used_again(folder, distill):
    """MHAN, for another seed and beside another method."""
    shared = f"--preparation_dir={folder}/preparations"
    distill = [*distill, "--epochs=1"]
    for name, flags in (
        ("makes", []),
        ("uses", ["--seed=1"]),
        ("beside", ["--method=mhgd+soft_logits"]),
        ("other", ["--set=num_heads=3"]),
        ("one more point", ['--set=variant={"senses_logits": true}']),
    ):
        flags = [
            f"--set=mhgd.{flag.removeprefix('--set=')}"
            if flag.startswith("--set=")
            else flag
            for flag in [*distill, *flags]
        ]
        output = run("distill", *flags, shared, f"--run={folder}/{name}")
        assert ("Preparing" in output) == (
            name in ("makes", "other", "one more point")
        )
    networks = [
        keras.saving.load_model(folder / name / "mhan.keras").get_weights()
        for name in ("makes", "uses", "beside")
    ]
    for other in networks[1:]:
        for a, b in zip(networks[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(list((folder / "preparations").iterdir())) == 3
    # The teacher at another place, then another teacher in its place.
    network = keras.saving.load_model(folder / "teacher" / "last.keras")
    for factor, prepares in ((1, False), (2, True)):
        network.set_weights([factor * each for each in network.get_weights()])
        network.save(folder / "moved.keras")
        flags = [f"--teacher={folder}/moved.keras", f"--run={folder}/{factor}"]
        output = run("distill", *distill, shared, *flags)
        assert ("Preparing" in output) == prepares


def test_images_without_labels_teach_by_mixed_views(folder, data, teacher):
    """A run that is told to end goes on with the same views."""
    arguments = [*data, f"--teacher={teacher}", "--student=vgg_thin"]
    arguments += ["--method=soft_logits", "--subset=12", "--unlabeled=rest"]
    arguments += ["--augmentation=strong", "--epochs=3"]
    arguments += ["--learning_rate=0.01"]
    output = run("distill", *arguments, f"--run={folder}/whole")
    assert "48 of 60 training images have no labels." in output
    path = folder / "ended"
    arguments += [f"--run={path}", "--save_freq=1"]
    with started("training.distill", *arguments) as (process, output):
        while "Epoch 2/3" not in output.read_text():
            assert process.is_alive(), output.read_text()
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
    assert "Resuming" in run("distill", *arguments)
    assert_same_run(path, folder / "whole")


def test_views_may_be_smaller_than_test_images(folder, data):
    flags = ["--image_size=20", "--view_size=16,18", "--augmentation=standard"]
    arguments = [*data, "--model=resnet_small", "--epochs=1", *flags]
    run("train", *arguments, f"--run={folder}/smaller")
    network = keras.saving.load_model(folder / "smaller" / "last.keras")
    assert network.input_shape == (None, None, None, 1)


WAYS = """
[[way]]
name = "mutual_learning"
method = "mutual_learning"
[[way]]
name = "MHGD, 2 heads"
method = "mhgd"
set = {{num_heads = 2, preparation_epochs = 1}}
[[way]]
name = "other teacher"
method = "soft_logits"
teacher = "{other}"
[[way]]
name = "other views"
method = "soft_logits"
views = 2
"""


@pytest.fixture(scope="module")
def compared(folder, data, teacher):
    """Arguments of a small comparison, and its folder after it was killed."""
    path, other = folder / "compared", folder / "other.keras"
    network = keras.saving.load_model(teacher / "last.keras")
    network.set_weights([2 * each for each in network.get_weights()])
    network.save(other)
    (folder / "ways.toml").write_text(WAYS.format(other=other))
    arguments = [
        *data,
        f"--teacher={teacher}",
        "--student=resnet_small",
        "--methods=student,soft_logits,mhgd",
        "--set=mhgd.preparation_epochs=1",
        "--set=soft_logits.temperature=2",
        f"--ways={folder}/ways.toml",
        "--epochs=1",
        "--views=1",
        "--weight_decay=0",
        "--trials=2",
        "--jobs=2",
        "--validation_split=0.25",
        f"--run={path}",
    ]
    process = subprocess.Popen(command("compare", *arguments))
    while not list(path.glob("*/result.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    return path, arguments


def test_a_killed_comparison_goes_on(compared):
    path, arguments = compared
    done = {each: each.stat().st_mtime_ns for each in path.glob("*_?/result.*")}
    output = run("compare", *arguments)
    for each, time_written in done.items():
        assert each.stat().st_mtime_ns == time_written
    table = (path / "table.md").read_text()
    assert table in output
    lines = table.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:9]] == [
        "| student",
        "| soft_logits",
        "| mhgd",
        "| mutual_learning",
        "| MHGD, 2 heads",
        "| other teacher",
        "| other views",
    ]
    assert "2 trials, teacher " in table
    assert "Tested on 15 training images that were held out" in table
    with np.load(path / "mhgd_1" / "predictions.npz") as predictions:
        assert {len(each) for each in predictions.values()} == {15}
    assert (path / "table.csv").read_text().count("\n") == 1 + 7 * 2
    assert (path / "result.png").read_bytes().startswith(b"\x89PNG")
    page = (path / "report.html").read_text()
    assert_self_contained(page)
    for part in ("MHGD, 2 heads", "Attention graphs, mhgd", "Most fixed"):
        assert part in page
    # Once for all trials; the teacher's outputs once a seed.
    assert len(list((path / "preparations").glob("mhan-*.keras"))) == 2
    for trial in (0, 1):
        names = {each.name for each in (path / f"teacher_{trial}").iterdir()}
        assert {
            "logits.float32.00000.npy",
            "vectors@stage1.float32.00000.npy",
        } < names
    configuration = json.loads(
        (path / "soft_logits_1" / "config.json").read_text()
    )
    assert configuration["set"] == ["soft_logits.temperature=2"]
    assert configuration["weight_decay"] == 0
    assert configuration["seed"] == 1


def test_a_comparison_from_an_archive_is_done(compared, tmp_path):
    path, arguments = compared
    run("compare", *arguments)
    shutil.copytree(path, tmp_path / "runs/evidence/thin")
    archive.main(tmp_path / "runs/evidence", tmp_path / "runs.tar.xz")
    with tarfile.open(tmp_path / "runs.tar.xz") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked/evidence/thin"
    output = run("compare", *arguments, f"--run={unpacked}")
    assert "$ python" not in output
    for name in ("table.md", "table.csv"):
        assert (unpacked / name).read_text() == (path / name).read_text()


def test_told_to_end_while_the_teacher_trains(folder, data):
    """The teacher's state is saved, and nothing else begins."""
    path = folder / "with_teacher"
    arguments = [
        *data,
        "--teacher=vgg_small",
        "--student=resnet_small",
        "--methods=student,soft_logits",
        "--trials=1",
        f"--run={path}",
    ]
    with open(folder / "with_teacher.log", "w+") as output:
        process = subprocess.Popen(
            command("compare", *arguments, "--epochs=500"), stdout=output
        )
        while not list(path.glob("vgg_small_0/checkpoints/*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 75
        output.seek(0)
        assert "vgg_small_0 | The state is saved." in output.read()
    assert not (path / "vgg_small_0" / "result.json").exists()
    assert not list(path.glob("student_*"))


def test_a_comparison_with_other_flags_is_refused(compared):
    path, arguments = compared
    output = run("compare", *arguments, "--epochs=2", fails=True)
    assert "must hold a comparison with these flags. Received: " in output
    assert "a comparison with other flags (all ways: " in output
    output = run("compare", *arguments, "--set=mhgd.num_heads=3", fails=True)
    assert "(mhgd: {" in output


def test_a_failed_training_is_named(folder, data, teacher):
    (folder / "wrong.toml").write_text(
        '[[way]]\nname = "wrong"\nmethod = "mhgd"\n'
        'sensing_points = ["stage1", "stage9"]\n'
    )
    output = run(
        "compare",
        *data,
        f"--teacher={teacher}",
        "--student=resnet_small",
        "--methods=student",
        f"--ways={folder}/wrong.toml",
        "--epochs=1",
        "--trials=1",
        f"--run={folder}/failing",
        fails=True,
    )
    assert "failing/wrong_0 (exit code 1)" in output
    assert (folder / "failing" / "student_0" / "result.json").exists()
    table = (folder / "failing" / "table.md").read_text()
    assert "| student | " in table and "| wrong | " not in table
    assert "Left out, since they failed: wrong." in table


WRONG = {
    "model": (
        "train",
        ["--model=resnet_smal"],
        "must be one of vgg16.*Did you mean 'resnet_small'",
    ),
    "method": (
        "distill",
        ["--teacher=TEACHER", "--student=resnet_small", "--method=mhdg"],
        "`method` must be one of .*mhgd",
    ),
    "argument of the method": (
        "distill",
        ["--teacher=TEACHER", "--student=resnet_small", "--set=heads=2"],
        "--set must name an argument of mhgd: .*num_heads.*Received: heads",
    ),
    "argument of several methods": (
        "distill",
        [
            "--teacher=TEACHER",
            "--student=resnet_small",
            "--method=mhgd+rkd",
            "--set=num_heads=2",
        ],
        "or method.name=value where there are several.*num_heads=2",
    ),
    "comparison without the student": (
        "compare",
        ["--teacher=TEACHER", "--student=resnet_small", "--methods=mhgd"],
        "--methods must begin with student",
    ),
    "method of a comparison": (
        "compare",
        ["--teacher=TEACHER", "--student=resnet_small", "--methods=student,kd"],
        "`method` must be one of .*Received: method='kd'",
    ),
    "argument of a comparison": (
        "compare",
        ["--teacher=TEACHER", "--student=resnet_small", "--set=num_heads=2"],
        "--set must be method.name=value",
    ),
    "argument of no method": (
        "compare",
        [
            "--teacher=TEACHER",
            "--student=resnet_small",
            "--methods=student,mhgd",
            "--set=mhgd.num_heads=2",
            "--set=dist.weight=2",
        ],
        "one of --methods; .*student,mhgd, and --set=dist.weight=2",
    ),
    "way of a comparison": (
        "compare",
        ["--teacher=TEACHER", "--student=resnet_small", "--ways=NAMELESS"],
        "must hold tables .*, each with a name and flags.*'method': 'rkd'"
        ".*Begin each way",
    ),
    "ways that are no TOML": (
        "compare",
        ["--teacher=TEACHER", "--student=resnet_small", "--ways=CORRUPT"],
        "--ways=.* must be TOML. Received: .*line 1, .*Correct it",
    ),
    "argument of a way": (
        "compare",
        ["--teacher=TEACHER", "--student=resnet_small", "--ways=MISSPELT"],
        "must name an argument of mhgd: .*Received: num_head",
    ),
    "two ways of one name": (
        "compare",
        [
            "--teacher=TEACHER",
            "--student=resnet_small",
            "--methods=student,mhgd",
            "--ways=TWICE",
        ],
        "must have names of their own.*'mhgd', 'MHGD'",
    ),
    "teacher": (
        "distill",
        ["--teacher=nowhere.keras", "--student=resnet_small"],
        "Received: nowhere.keras, which is not there. Correct the path",
    ),
    "corrupt teacher": (
        "distill",
        ["--teacher=CORRUPT", "--student=resnet_small"],
        "must be a Keras model in the .keras format. Received: .*Save the",
    ),
    "workers of a comparison": (
        "compare",
        ["--teacher=a", "--student=b", "--strategy=multi_worker"],
        "needs a --strategy other than.*Received: .*Run train and distill",
    ),
    "workers of a search": (
        "tune",
        ["--teacher=a", "--student=b", "--trials=1", "--strategy=multi_worker"],
        "needs a --strategy other than.*Received: .*Start several processes",
    ),
    "sensing point": (
        "distill",
        [
            "--teacher=TEACHER",
            "--student=resnet_small",
            "--sensing_points=stage1,stage33",
        ],
        "must be a layer of 'resnet_small'.*Received: 'stage33'.*'stage3'",
    ),
    "cache without views": (
        "distill",
        ["--teacher=TEACHER", "--student=resnet_small", "--cache_teacher"],
        "--cache_teacher needs a number of --views",
    ),
    "views": ("train", ["--model=resnet_small", "--views=0"], "1 or more"),
    "epochs": ("train", ["--model=resnet_small", "--epochs=0"], "1 or more"),
    "batch": ("train", ["--model=resnet_small", "--batch_size=-1"], "1 or m"),
    "rate": (
        "train",
        ["--model=resnet_small", "--learning_rate=0"],
        "--learning_rate must be positive",
    ),
    "profile": (
        "train",
        ["--model=resnet_small", "--profile=20,10"],
        "--profile must be two rising batch numbers",
    ),
    "size": (
        "train",
        ["--model=resnet_small", "--image_size=0"],
        "--image_size must be a positive number, or two",
    ),
    "size of no views": (
        "train",
        ["--model=resnet_small", "--view_size=20"],
        "--view_size needs --augmentation=standard or strong",
    ),
    "rest": (
        "train",
        ["--model=resnet_small", "--unlabeled=rest"],
        "--unlabeled=rest needs --subset",
    ),
    "images without labels": (
        "train",
        ["--model=resnet_small", "--unlabeled=/nowhere"],
        "must be in a folder. Received: /nowhere",
    ),
    "folder without images": (
        "train",
        ["--model=resnet_small", "--unlabeled=EMPTY"],
        "folder must have images .*Received: none in .*Add some",
    ),
    "views of another kind": (
        "train",
        ["--model=resnet_small", "--augmentation=strongest"],
        "none\\|crop\\|standard\\|strong",
    ),
    "folder": (
        "train",
        ["--model=resnet_small", "--run=/proc/nowhere/run"],
        "folder must be writable",
    ),
    "data set": (
        "train",
        ["--model=resnet_small", "--dataset=glyps!"],
        "Did you mean 'glyphs'",
    ),
    "missing data set": (
        "train",
        ["--model=resnet_small", "--dataset=cifar100", "--data_dir=EMPTY"],
        "must be prepared before it is read.*--download",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_told(folder, data, teacher, what):
    program, arguments, message = WRONG[what]
    corrupt = folder / "corrupt.keras"
    corrupt.write_bytes(b"PK not a zip")
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    nameless, twice = folder / "nameless.toml", folder / "twice.toml"
    nameless.write_text('[[way]]\nmethod = "rkd"\n')
    twice.write_text('[[way]]\nname = "MHGD"\nmethod = "mhgd"\n')
    misspelt = folder / "misspelt.toml"
    misspelt.write_text(
        '[[way]]\nname = "a"\nmethod = "mhgd"\nset = {num_head = 4}\n'
    )
    places = {
        "TEACHER": teacher,
        "CORRUPT": corrupt,
        "EMPTY": empty,
        "NAMELESS": nameless,
        "TWICE": twice,
        "MISSPELT": misspelt,
    }
    for name, path in places.items():
        arguments = [a.replace(f"={name}", f"={path}") for a in arguments]
    output = run(
        program, *data, f"--run={folder}/wrong_{what}", *arguments, fails=True
    )
    assert re.search(message, output, re.DOTALL), output


def test_demo(folder):
    """The demo, with less of everything."""
    arguments = [
        "--subset=200",
        "--epochs=1",
        "--preparation_epochs=1",
        f"--run={folder}/demo",
        f"--out={folder}/demo_export",
    ]
    output = run("demo", *arguments)
    assert "| alone | " in output and "| recommended | " in output
    assert "1 trial, teacher 84.84" in output
    assert output.count("the Keras model's class for") == 2
    assert (folder / "demo" / "result.png").stat().st_size > 10_000
    assert (folder / "demo_export" / "model.tflite").exists()
    assert (folder / "demo" / "table.md").read_text() in output
    for line in (
        "Teacher: vgg_small from vgg_small_glyphs, 84.84 % of the 5,000 test "
        "images",
        "Data: 200 training images of glyphs, tested on 5,000 test images",
        f"Written to: {folder}/demo/recommended_0",
    ):
        assert f"\nrecommended_0 | {line}\n" in output
    gained, costs, *following = output.splitlines()[-5:]
    known = "the student alone has .* %, the teacher 84.84 %."
    assert re.match(f"Gained: .*{known}", gained)
    assert re.fullmatch("Costs: 84,276 parameters.* kB .* training.", costs)
    assert following == [
        "Next:",
        "  python -m training.evaluate --dataset=glyphs "
        f"--model={folder}/demo_export/model.tflite",
        "For data of your own, see python -m training.distill --help.",
    ]
