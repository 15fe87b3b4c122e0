"""Files that are either there and whole, or not there."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

import keras


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file under a temporary name and renames it.

    Args:
        path: The file to write or replace; its folder must exist.
        content: Bytes, or text that is written as UTF-8.

    Raises:
        OSError: If the file can't be written; an older one is left as it is.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if isinstance(content, str):
        content = content.encode()
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_network(network: keras.Model, path: str | os.PathLike) -> None:
    """Saves a network as `.keras`: whole, or not at all."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}")
    network.save(temporary)
    os.replace(temporary, path)


def require_writable(directory: str | os.PathLike) -> pathlib.Path:
    """Makes a folder if it is missing and proves that files can be written.

    Args:
        directory: The folder.

    Returns:
        The folder as a path.

    Raises:
        OSError: If the folder can't be made or nothing can be written to it.
    """
    directory = pathlib.Path(directory)
    probe = directory / f".probe.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"The folder must be writable ({error.strerror}). Choose another "
            "folder or mend its permissions",
            str(directory),
        ) from error
    return directory


@contextlib.contextmanager
def locked(directory: str | os.PathLike, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a folder; a dead process keeps out nobody.

    Args:
        directory: The folder; it must exist.
        wait: Whether to wait for another process that holds the lock.

    Yields:
        Nothing, while the lock is held.

    Raises:
        BlockingIOError: If another process holds the lock, and `wait` is
            false.
    """
    with pathlib.Path(directory, ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BlockingIOError(
                error.errno,
                "Another process must not be at work in the folder. Wait for "
                "it, or end it",
                str(directory),
            ) from error
        yield
