import os
import subprocess
import sys

import pytest

from keras_mhgd.storage.files import locked, require_writable, write_atomically


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x00\xff", b"\x00\xff"),
        ("café\n", "café\n".encode()),
        ("", b""),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_writes_or_replaces(tmp_path, content, expected, exists):
    path = tmp_path / "result.json"
    if exists:
        path.write_text("something longer that was there before")
    write_atomically(str(path), content)
    assert path.read_bytes() == expected
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "result.json"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    """The content is on disk under another name before it is renamed."""
    path = tmp_path / "result.json"
    path.write_text("old")
    seen = []
    replace = os.replace

    def watch(source, target):
        seen.append((source.read_text(), target.read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_atomically(path, "new")
    assert seen == [("new", "old")]


def test_writing_needs_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "result.json", "new")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        write_atomically(tmp_path / "file" / "result.json", "new")


@pytest.mark.parametrize("exists", [False, True])
def test_require_writable_makes_the_folder(tmp_path, exists):
    folder = tmp_path / "runs" / "one"
    if exists:
        folder.mkdir(parents=True)
        (folder / "kept").touch()
    assert require_writable(str(folder)) == folder
    assert os.listdir(folder) == (["kept"] if exists else [])


@pytest.mark.parametrize("below", ["", "run"])
def test_require_writable_names_the_folder(tmp_path, below):
    """A path at or below a regular file: refused for any user."""
    file = tmp_path / "file"
    file.write_text("content")
    with pytest.raises(
        OSError, match="must be writable .* Choose another"
    ) as e:
        require_writable(file / below)
    assert e.value.filename == str(file / below)
    assert file.read_text() == "content"


@pytest.mark.slow
def test_a_lock_keeps_others_out_until_its_holder_is_dead(tmp_path):
    code = (
        "import sys, time\nfrom keras_mhgd.storage.files import locked\n"
        "with locked(sys.argv[1]):\n    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match="must not be at work.*Wait for"):
        with locked(tmp_path):
            pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path), pytest.raises(BlockingIOError):
        with locked(tmp_path):
            pass
    with locked(tmp_path, wait=True):
        pass
