"""The published tables, from data in their own layouts to the last figure."""

import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.test_sources import write_tiny_imagenet
from tests.training.runs import run

pytestmark = pytest.mark.slow

SMALL = ["--epochs=1", "--trials=1", "--jobs=2", "--batch_size=64"]


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """A prepared folder of TensorFlow Datasets, with noise for images."""
    folder = tmp_path_factory.mktemp("tfds")
    rng = np.random.default_rng(0)

    def examples(count):
        for index in range(count):
            yield (
                index,
                {
                    "id": str(index),
                    "image": rng.integers(0, 256, (32, 32, 3), np.uint8),
                    "label": index % 100,
                    "coarse_label": index % 20,
                },
            )

    features = tfds.features
    tfds.dataset_builders.store_as_tfds_dataset(
        "cifar100",
        version=str(tfds.builder_cls("cifar100").VERSION),
        data_dir=folder,
        split_datasets={"train": examples(100), "test": examples(100)},
        features=features.FeaturesDict(
            {
                "id": features.Text(),
                "image": features.Image(shape=(32, 32, 3)),
                "label": features.ClassLabel(num_classes=100),
                "coarse_label": features.ClassLabel(num_classes=20),
            }
        ),
    )
    return folder


def compare(folder, dataset, data_dir, *arguments, **options):
    return run(
        "compare",
        f"--dataset={dataset}",
        f"--data_dir={data_dir}",
        "--teacher=vgg16",
        "--student=vgg7",
        *SMALL,
        f"--run={folder}",
        *arguments,
        **options,
    )


def test_cifar100(tmp_path, cifar100):
    """The teacher is trained first, and published results stand beside."""
    (tmp_path / "heads.toml").write_text(
        '[[way]]\nname = "1 head"\nmethod = "mhgd"\n'
        "set = {num_heads = 1, preparation_epochs = 1}\n"
    )
    arguments = [
        "--methods=published",
        "--set=mhgd.preparation_epochs=1",
        f"--ways={tmp_path}/heads.toml",
    ]
    output = compare(tmp_path, "cifar100", cifar100, *arguments)
    for name, result in [
        ("student", "59.97"),
        ("soft_logits", "60.95"),
        ("fsp", "61.87"),
        ("activation_boundaries", "64.56"),
        ("kd_svd", "64.25"),
        ("kd_svdf", "64.38"),
        ("mhgd", "67.02"),
        ("1 head", "65.71"),
    ]:
        row = rf"^\| {name} \| \d.* \| {result} \|$"
        assert re.search(row, output, re.MULTILINE), (name, output)
    assert "Published: S. Lee, B. C. Song" in output
    assert "Teacher, published: 67.99." in output
    assert (tmp_path / "vgg16_0" / "last.keras").exists()
    # It goes on where it has been moved to.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    arguments[-1] = f"--ways={moved}/heads.toml"
    assert compare(moved, "cifar100", cifar100, *arguments).count("$") == 0


def test_tiny_imagenet(tmp_path):
    write_tiny_imagenet(tmp_path / "data")
    arguments = ["--methods=student,mhgd", "--set=mhgd.preparation_epochs=1"]
    output = compare(
        tmp_path / "run", "tiny_imagenet", tmp_path / "data", *arguments
    )
    assert "| mhgd | " in output and "| 56.35 |" in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--teacher=vgg_smal"], "`model` must be one of .*'vgg_small'"),
        (
            ["--teacher=runs/none"],
            "Received: runs/none, which is not there. Correct",
        ),
        (["--student=resnet8"], "resnet8 from vgg16 on cifar100"),
        # Of the methods that have published results, each is made.
        (["--set=kd_svdf.clip_bound=0"], "`clip_bound` must be positive"),
        (["--set=mhgd.num_heads=0"], "`num_heads` must be 1 or more"),
    ],
)
def test_wrong_input_is_told(tmp_path, cifar100, arguments, message):
    output = compare(
        tmp_path / "run",
        "cifar100",
        cifar100,
        "--methods=published",
        *arguments,
        fails=True,
    )
    assert not (tmp_path / "run").exists()
    assert re.search(message, output, re.DOTALL), output
