"""Times training steps of the library, of Keras and of PyTorch.

python -m benchmarks.speed --run=runs/benchmark
python -m benchmarks.speed --run=runs/quick --pairs=glyphs --rounds=3
    --routes=student,MHGD --sections=steps

There are two pairs of networks: those of the demo on glyphs, and a `wrn_22_4`
that teaches a `wrn_10_4` random images 32 x 32 x 3. A route is one
implementation of a training step. Each route runs in a process of its own. All
routes take turns, so changes in the machine's speed affect all of them.

Run the same command again to resume. `pip install -e .[torch]` installs PyTorch
and torchdistill. The machine should do nothing else meanwhile.
"""

from absl import app, flags

# Every process imports this module. It must not import TensorFlow, which would
# add to the memory of processes that use only PyTorch.
flags.DEFINE_string(
    "run", None, "Folder of the results. The same command again resumes it."
)
flags.DEFINE_list("pairs", [], "glyphs, wrn; both if not given.")
flags.DEFINE_list(
    "sections",
    [],
    "What is measured, of: steps, parts, vectors, graph, compile, fusion, "
    "input, imports. All if not given.",
)
flags.DEFINE_list(
    "routes", [], "Routes of the section steps; all if not given."
)
flags.DEFINE_integer("rounds", 9, "Turns of each route.", lower_bound=1)
flags.DEFINE_integer(
    "steps",
    None,
    "Steps of a turn; 10 on glyphs and 1 on wrn if not given.",
    lower_bound=1,
)
flags.DEFINE_integer("threads", 2, "Threads of a process.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=2)
flags.mark_flag_as_required("run")
FLAGS = flags.FLAGS


def main(argv) -> None:
    """Measures the sections, pairs and routes that the flags name."""
    from benchmarks.speed import routes
    from benchmarks.speed.pairs import PAIRS
    from benchmarks.speed.program import Benchmark
    from benchmarks.speed.tasks import SECTIONS, tasks

    for name, known in (
        ("pairs", PAIRS),
        ("sections", SECTIONS),
        ("routes", routes.names()),
    ):
        unknown = [each for each in FLAGS[name].value if each not in known]
        if unknown:
            raise app.UsageError(
                f"--{name} must be among: {'; '.join(known)}. "
                f"Received: {'; '.join(unknown)}."
            )
    config = {
        name: FLAGS[name].value
        for name in ("routes", "rounds", "steps", "threads", "batch_size")
    }
    benchmark = Benchmark(FLAGS.run, config)
    benchmark.run(
        tasks(
            FLAGS.sections or SECTIONS,
            FLAGS.pairs or list(PAIRS),
            names=config.pop("routes"),
            **config,
        )
    )
    print(f"\n{benchmark.text}\nWritten to {benchmark.directory}.")


if __name__ == "__main__":
    app.run(main)
