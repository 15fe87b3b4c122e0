"""Ten thousand steps of one process."""

import json
import statistics
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

EPOCHS = 100  # of 100 steps


def test_ten_thousand_steps_keep_memory_and_files(tmp_path):
    """Memory grows less than 2 %, the number of open files not at all.

    After the first 1 000 steps. Medians of ten epochs, as the allocator gives
    memory back in large pieces, now and then.
    """
    # Not a fork, of whose memory a part would not be its own.
    command = [sys.executable, "-m", "tests.training.long_run"]
    done = subprocess.run(
        [*command, tmp_path, str(EPOCHS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    held = json.loads((tmp_path / "held.json").read_text())
    assert len(held) == EPOCHS
    memory, files = zip(*held, strict=True)
    first, last = memory[10:20], memory[-10:]
    assert statistics.median(last) < 1.02 * statistics.median(first), memory
    assert len(set(files)) == 1, files
    for name in ("last.keras", "report.html", "result.json"):
        assert (tmp_path / name).exists()
