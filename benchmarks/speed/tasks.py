"""Lists the tasks of the benchmark."""

import functools
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.speed import routes, single
from benchmarks.speed.contest import alone, contest

SECTIONS = (
    "steps",
    "parts",
    "vectors",
    "graph",
    "compile",
    "fusion",
    "input",
    "imports",
)
SIZES = (1024, 2048, 4096, 8192)
# Steps of a turn, which take about a second.
_STEPS = {"glyphs": 10, "wrn": 1}


def tasks(
    sections: Sequence[str],
    pairs: Sequence[str],
    names: Sequence[str],
    rounds: int,
    steps: int | None,
    threads: int,
    batch_size: int,
) -> dict[str, Callable[[], Any]]:
    """Lists the tasks of some sections.

    Args:
        sections: Some of `SECTIONS`.
        pairs: Some of the names in `pairs.PAIRS`.
        names: The routes of the section `"steps"`; all if empty.
        rounds: Rounds of every contest.
        steps: Steps of a turn; `None` takes the pair's default.
        threads: Threads of a process.
        batch_size: Images in a batch.

    Returns:
        By each task's key, `section/...`, a function that runs the task and
        returns plain values.
    """
    here = "benchmarks.speed"
    size = {"batch_size": batch_size}

    def race(key, pair, hosts):
        turn = steps or _STEPS[pair]
        return functools.partial(contest, hosts, rounds, turn, threads, key)

    def steps_tasks():
        for pair in pairs:
            for group, members in routes.groups().items():
                chosen = [
                    name for name in members if not names or name in names
                ]
                hosts = routes.hosts(chosen, pair, batch_size)
                key = f"steps/{pair}/{group}"
                if set(hosts) - {"student"}:
                    yield key, race(key, pair, hosts)

    def parts_tasks():
        for pair in pairs:
            for clipping in ("per_variable", "per_feature"):
                key = f"parts/{pair}/{clipping}"
                arguments = {"pair": pair, "clipping": clipping} | size
                hosts = {clipping: (f"{here}.parts:make", arguments)}
                yield key, race(key, pair, hosts)

    def vectors_tasks():
        hosts = {"vectors": (f"{here}.vectors:make", size)}
        yield (
            "vectors/one thread",
            functools.partial(contest, hosts, rounds, 1, 1, "vectors"),
        )
        for pair in pairs:
            yield (
                f"accuracy/{pair}",
                call("vectors:accuracy", pair=pair, batch_size=32),
            )

    def graph_tasks():
        for count in SIZES:
            yield f"graph/{count}", call("single:graph", size=count)

    def compile_tasks():
        for pair in pairs:
            for method in single.METHODS:
                yield f"compile/{pair}/{method}", both(pair, method)

    def both(pair, method):
        ways = {
            name: call(
                "single:first_steps",
                pair=pair,
                method=method,
                jit_compile=name == "compiled",
                **size,
            )
            for name in ("plain", "compiled")
        }
        return lambda: {name: way() for name, way in ways.items()}

    def fusion_tasks():
        for pair in pairs:
            yield (
                f"fusion/{pair}",
                call("single:fusion", pair=pair, steps=20, **size),
            )

    def input_tasks():
        for pair in pairs:
            hosts = routes.hosts(["student", "input"], pair, batch_size)
            yield f"input/{pair}", race(f"input/{pair}", pair, hosts)

    def imports_tasks():
        yield "imports", imports

    def call(function, **arguments):
        return functools.partial(
            alone, f"{here}.{function}", arguments, threads
        )

    makers: Mapping[str, Callable] = {
        "steps": steps_tasks,
        "parts": parts_tasks,
        "vectors": vectors_tasks,
        "graph": graph_tasks,
        "compile": compile_tasks,
        "fusion": fusion_tasks,
        "input": input_tasks,
        "imports": imports_tasks,
    }
    return {
        key: task for section in sections for key, task in makers[section]()
    }


def imports(repeats: int = 5) -> dict[str, list[float]]:
    """Times what `import keras_mhgd` adds to `import keras`.

    Returns:
        `seconds`, by Python's `-X importtime` in fresh processes.
    """
    code = "import keras, keras_mhgd"
    found = []
    for _ in range(repeats):
        lines = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code],
            stderr=subprocess.PIPE,
            check=True,
            text=True,
        ).stderr.splitlines()
        (line,) = [each for each in lines if each.endswith("| keras_mhgd")]
        found.append(int(line.split("|")[1]) / 1e6)
    return {"seconds": found}
