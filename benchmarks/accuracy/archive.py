"""Packs the run folders of the evidence into `evidence/runs.tar.xz`.

python -m benchmarks.accuracy.archive

Students and logs are left out. For a training of a table, the archive keeps the
files that the table is made from. For a training of a search, it keeps the
result. For a teacher, it also keeps the network. Run folders that are unpacked
into `runs/` count as finished.
"""

import io
import lzma
import pathlib
import tarfile
from collections.abc import Iterator

import numpy as np

from benchmarks.accuracy import evidence
from keras_mhgd.storage.files import replacing

ARCHIVE = evidence.RESULTS / "runs.tar.xz"
SEARCH = "config.json", "result.json"
TRAINING = *SEARCH, "metrics.csv", "predictions.npz"
TEACHER = *SEARCH, "metrics.csv", "last.keras"
# The window of the compression holds many trainings, so that their equal test
# labels are stored once.
FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 2**26,
    }
]


def main(
    runs: pathlib.Path = evidence.RUNS, archive: pathlib.Path = ARCHIVE
) -> None:
    """Packs the finished runs into an archive without times and owners.

    Args:
        runs: Folder of `benchmarks.accuracy.evidence`.
        archive: The file to write.

    Raises:
        OSError: If a file is missing, or the archive can't be written.
    """
    with (
        replacing(archive) as temporary,
        lzma.open(temporary, "wb", filters=FILTERS) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in _kept(runs):
            entry = tarfile.TarInfo(str(path.relative_to(runs.parent)))
            content = _content(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _kept(runs: pathlib.Path) -> Iterator[pathlib.Path]:
    folders = {teacher: TEACHER for teacher in runs.glob("*_teacher*")}
    for table in evidence.TABLES:
        for folder, names in (table, TRAINING), (f"{table}_search", SEARCH):
            config = runs / folder / "config.json"
            if config.exists():
                yield config
            folders |= dict.fromkeys((runs / folder).glob("*/"), names)
    for folder in sorted(folders):
        if (folder / "result.json").exists():
            yield from (folder / name for name in folders[folder])


def _content(path: pathlib.Path) -> bytes:
    if path.suffix != ".npz":
        return path.read_bytes()
    content = io.BytesIO()
    with np.load(path) as arrays:
        # Not compressed here: the archive then finds the equal labels.
        np.savez(content, **arrays)
    return content.getvalue()


if __name__ == "__main__":
    main()
