"""Describes the machine and its software in words."""

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re


def machine(threads: int) -> str:
    """Describes processor, memory and software; names no host or folder.

    Args:
        threads: Threads of each process.

    Returns:
        Sentences.
    """
    model = _field("/proc/cpuinfo", r"model name\s*: (.+)") or "a processor"
    flags = _field("/proc/cpuinfo", r"flags\s*: (.+)") or ""
    memory = _field("/proc/meminfo", r"MemTotal:\s+(\d+) kB")
    gigabytes = round(int(memory or 0) / 1024**2)
    wide = " with AVX-512" if "avx512f" in flags.split() else ""
    versions = ", ".join(
        f"{name} {_version(package)}"
        for name, package in (
            ("Keras", "keras"),
            ("TensorFlow", "tensorflow"),
            ("PyTorch", "torch"),
            ("torchdistill", "torchdistill"),
        )
    )
    return (
        f"{model}{wide}, {len(os.sched_getaffinity(0))} cores, {gigabytes} GB "
        f"of memory, no GPU used. Python {platform.python_version()}, "
        f"{versions}. {threads} thread{'s' * (threads > 1)} a process, "
        "float32."
    )


def _version(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return "not installed"
    return importlib.metadata.version(package)


def _field(path: str, pattern: str) -> str | None:
    file = pathlib.Path(path)
    found = re.search(pattern, file.read_text()) if file.exists() else None
    return found and found[1].strip()
