"""Several devices that share a batch train like one."""

import pytest

from benchmarks.correctness.cluster import results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "cases"),
    [
        # 64 images are four batches of 16; of 59 the last is 11.
        ("2", ["outputs and graphs,64", "per_feature,59", "embeddings,59"]),
        ("2", ["as published,59", "soft_logits,59,cached", "wide maps,59"]),
        (
            "4",
            [
                "outputs and graphs,59",
                "embeddings,59",
                "soft_logits,59,validated",
            ],
        ),
        # Losses that Keras divides by the number of replicas, and not.
        (
            "2",
            [
                "soft_logits,59,sum",
                "soft_logits,59,weighted mean",
                "soft_logits,59,function",
                "soft_logits,59,no labels",
                "soft_logits,59,made labels",
                "soft_logits,59,validated",
                "fitnet,59,no labels",
            ],
        ),
        # Each half of a batch with graphs of its own.
        ("2", ["replica sum,64", "replica mean,64"]),
        # A step that is skipped on all because of one.
        (
            "2",
            [
                # Together they amplify round-off, in this case to 3e-5.
                "rkd,59,a bad batch",
                "crd,59,a bad batch",
                "soft_logits,59,a bad batch",
                "soft_logits,59,an overflow",
                "outputs and graphs,59,an overflow",
            ],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_weights_and_history_are_those_of_one_device(devices, cases):
    ((_, differences),) = results(
        "tests.distribution.replicated", [devices, *cases]
    )
    assert differences.keys() == set(cases)
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.slow
def test_devices_share_batches_evenly_and_join_them():
    """Types and static sizes stay; a device without a sample is refused."""
    results("tests.distribution.sharing", [])
