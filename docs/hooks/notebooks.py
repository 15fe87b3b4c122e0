"""Runs the guides' notebooks, and makes pages of them and their outputs.

The pages are Markdown, so that MkDocs checks their links. Each notebook runs
in an empty folder, two at a time. An error ends the build. Text on stderr is a
warning.
"""

import concurrent.futures
import tempfile
from typing import Any

import nbclient
import nbformat
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

_SECONDS = 300  # that a cell may take
_log = get_plugin_logger("notebooks")
_running: dict[str, concurrent.futures.Future] = {}


def on_nav(nav: Navigation, **kwargs: Any) -> None:
    """Starts the notebooks of the navigation."""
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
    notebook = _running.pop(page.file.src_uri).result()
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(_block(cell.source, "python"))
            parts += [_shown(each, page.file.src_uri) for each in cell.outputs]
    return "\n\n".join(parts) + "\n"


def _run(text: str) -> nbformat.NotebookNode:
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
    return notebook


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
