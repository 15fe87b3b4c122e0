"""Measures the library's training steps beside what else there is.

python -m benchmarks.speed --run=runs/benchmark
python -m benchmarks.speed --run=runs/quick --pairs=glyphs --rounds=3
    --routes=student,MHGD --sections=steps

Two pairs of networks: the demo's on glyphs, and `wrn_22_4` to `wrn_10_4` on
random images 32 x 32 x 3. Each route runs in a process of its own, and all
take turns, so that a machine's moods meet all of them. The same command again
goes on where it was ended. PyTorch and torchdistill come with
`pip install -e .[torch]`. The machine should do nothing else meanwhile.
"""

from absl import app, flags

# No TensorFlow here: each process imports this module, and one with PyTorch
# alone should be no larger for it.
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
    """Measures what the flags name."""
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
