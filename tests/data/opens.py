"""Counts how often files are opened, by any process: the kernel tells."""

import collections
import contextlib
import ctypes
import os
import pathlib
import struct
from collections.abc import Iterator, Sequence

# <sys/inotify.h>. Equal events are told once if no other lies between them, so
# closing is watched too.
_CLOSE, _OPEN, _OVERFLOW, _FOLDER = 0x10, 0x20, 0x4000, 0x40000000
_EVENT = struct.Struct("iIII")


@contextlib.contextmanager
def opens(
    folders: Sequence[pathlib.Path],
) -> Iterator[collections.Counter[pathlib.Path]]:
    """Gives a counter of the files in folders, which is filled at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = collections.Counter()
    queue = libc.inotify_init1(os.O_NONBLOCK)
    try:
        watched = {
            libc.inotify_add_watch(
                queue, os.fsencode(folder), _OPEN | _CLOSE
            ): folder
            for folder in folders
        }
        assert min(queue, *watched) >= 0, os.strerror(ctypes.get_errno())
        yield found
        with contextlib.suppress(BlockingIOError):
            while events := os.read(queue, 2**16):
                for folder, mask, name in _parsed(events):
                    assert not mask & _OVERFLOW, "events are lost"
                    if mask & _OPEN and not mask & _FOLDER:
                        found[watched[folder] / name] += 1
    finally:
        os.close(queue)


def _parsed(events: bytes) -> Iterator[tuple[int, int, str]]:
    """Gives the folder, the mask and the file's name of each event."""
    while events:
        folder, mask, _, size = _EVENT.unpack_from(events)
        name, events = (
            events[_EVENT.size :][:size],
            events[_EVENT.size + size :],
        )
        yield folder, mask, os.fsdecode(name.rstrip(b"\0"))
