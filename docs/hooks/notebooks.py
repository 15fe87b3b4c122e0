"""Runs the guides' notebooks, and makes pages of them and their outputs.

The pages are Markdown, so that MkDocs checks their links. Each notebook runs
in an empty folder, two at a time. An error ends the build. Text on stderr is a
warning.
"""

import concurrent.futures
import tempfile
import time
from typing import Any

import nbclient
import nbformat
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

_SECONDS = 300  # that a cell may take
_log = get_plugin_logger("notebooks")
_running: dict[str, concurrent.futures.Future] = {}
_times: dict[str, tuple[float, float]] = {}  # a guide's start and end, seconds


def on_nav(nav: Navigation, **kwargs: Any) -> None:
    """Starts the notebooks of the navigation."""
    _times.clear()
    pool = concurrent.futures.ThreadPoolExecutor(2)
    for page in nav.pages:
        if page.file.src_uri.endswith(".ipynb"):
            _running[page.file.src_uri] = pool.submit(
                _run, page.file.content_string
            )
    pool.shutdown(wait=False)


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Makes a page of a notebook that has run."""
    if not page.file.src_uri.endswith(".ipynb"):
        return markdown
    _log.info("waiting for %s", page.file.src_uri)
    notebook, *times = _running.pop(page.file.src_uri).result()
    _times[page.file.src_uri] = tuple(times)
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(_block(cell.source, "python"))
            parts += [_shown(each, page.file.src_uri) for each in cell.outputs]
    return "\n\n".join(parts) + "\n"


def on_post_build(**kwargs: Any) -> None:
    """Logs how long the guides took."""
    if not _times:
        return
    for path, (start, end) in _times.items():
        _log.info("%s took %.0f s", path, end - start)
    starts, ends = zip(*_times.values(), strict=True)
    _log.info("all guides took %.0f s", max(ends) - min(starts))


def _run(text: str) -> tuple[nbformat.NotebookNode, float, float]:
    """Gives a notebook that has run, and when it started and ended."""
    start = time.monotonic()
    notebook = nbformat.reads(text, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        nbclient.execute(
            notebook,
            cwd=folder,
            timeout=_SECONDS,
            kernel_name="python3",
            coalesce_streams=True,
            # TensorFlow's C++ writes to the process's own streams, whatever
            # its log level: this stays in the terminal.
            extra_arguments=[
                "--log-level=ERROR",
                "--IPKernelApp.capture_fd_output=False",
            ],
        )
    return notebook, start, time.monotonic()


def _block(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"


def _shown(output: nbformat.NotebookNode, path: str) -> str:
    """Gives one output of a cell as Markdown."""
    if output.output_type == "stream":
        if output.name == "stderr":
            _log.warning("%s writes to stderr: %s", path, output.text)
        return _block(output.text, "text")
    data = output.data
    if "image/png" in data:
        image = data["image/png"].replace("\n", "")
        return f"![Output of the code above](data:image/png;base64,{image})"
    for kind in ("text/markdown", "text/html"):
        if kind in data:
            return data[kind]
    return _block(data["text/plain"], "text")
