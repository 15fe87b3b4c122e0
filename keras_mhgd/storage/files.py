"""Writes whole files or none, reads JSON, and locks folders."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary name to write a file under, and then renames the file.

    Args:
        path: The file to write or replace; its folder must exist.

    Yields:
        The temporary name, with the suffix of `path`.

    Raises:
        OSError: If the file can't be written. An older file is not changed, and
            no temporary file is left.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, str(temporary), temporary):
            raise  # the error is about another file
        raise OSError(
            error.errno,
            f"The file must be written whole ({error.strerror or error}). Make "
            "space or mend the permissions, then try again: what was there "
            "before is left as it was",
            str(path),
        ) from error
    finally:
        # The temporary file can't be removed if writing is now forbidden.
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file under a temporary name and renames it.

    Args:
        path: The file to write or replace; its folder must exist.
        content: Bytes, or text that is written as UTF-8.

    Raises:
        OSError: If the file can't be written. An older file is not changed, and
            no temporary file is left.
    """
    if isinstance(content, str):
        content = content.encode()
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it doesn't hold one JSON object.
    """
    try:
        found = json.loads(pathlib.Path(path).read_bytes())
        if isinstance(found, dict):
            return found
        cause = f"a {type(found).__name__}"
    except (ValueError, RecursionError) as error:
        cause = str(error)
    raise ValueError(
        f"{path} must hold a JSON object. Received: {cause}. Put a whole file "
        "in its place, or delete it."
    )


def require_writable(directory: str | os.PathLike) -> pathlib.Path:
    """Makes a folder if it is missing, and checks that it is writable.

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
        # A process on another host may have the same id, and so the same probe.
        probe.unlink(missing_ok=True)
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
    """Locks a folder for one process; a process that ends loses its lock.

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
