"""Several worker processes that share a batch train like one process."""

import pytest

from benchmarks.correctness.cluster import results, tf_configs


def on_workers(count, module, *arguments):
    """Runs a program on so many workers: gives what each printed."""
    variables = [{"TF_CONFIG": config} for config in tf_configs(count)]
    return results(module, arguments, variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "cases"),
    [
        # Of 59 images the last batch is 11; of the 17 for validation it is 1.
        (
            2,
            [
                "outputs and graphs,59",
                "embeddings,59",
                "fitnet,59,no labels",
                "soft_logits,59,an overflow",
            ],
        ),
        (3, ["per_feature,59"]),
    ],
)
def test_weights_and_history_are_those_of_one_process(count, cases):
    outputs = on_workers(count, "tests.distribution.replicated", count, *cases)
    for sums, *_ in outputs:
        assert sums == outputs[0][0]  # to the last bit
    differences = outputs[0][1]
    assert differences.keys() == set(cases)
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.slow
def test_a_network_of_several_outputs_trains_like_on_one_process():
    program = "benchmarks.correctness.tasks_on_devices"
    chief, _ = on_workers(2, program, 2, "soft_logits", "two_heads")
    assert chief[-1]["two_heads"] < 1e-5


@pytest.mark.slow
def test_what_workers_cannot_do_is_refused():
    ((found,),) = on_workers(1, "tests.distribution.refusing")
    names = {"class_weight", "validation_split", "steps_per_execution"}
    assert found.keys() == names
    for name, message in found.items():
        assert name in message and "with several workers" in message


@pytest.mark.slow
@pytest.mark.parametrize("how", ["late", "lost"])
def test_a_worker_ends_after_the_others_have_heard_it(how, tmp_path):
    """And it doesn't matter to it if they have ended before."""
    on_workers(2, "tests.distribution.leaving", how, tmp_path / "heard")
