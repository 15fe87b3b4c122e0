"""Makes a site of the repository: its pages, and all that they link to.

Files are known by their paths in the repository, also those in `docs/`. So a
link that works in the repository works in the site.
"""

import pathlib
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = pathlib.Path(__file__).parents[2]
_TEXTS = (".md", ".ipynb")  # what links are looked for in
_LINK = re.compile(r"\]\(([^)#:\s]+)")


class _File(File):
    """A file of the repository. Notebooks and Python are pages, too."""

    def is_documentation_page(self) -> bool:
        return self.src_uri.endswith((*_TEXTS, ".py"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Gives each file its path, and adds what pages link to."""

    def file(path, **options):
        return _File(
            path, _ROOT, config.site_dir, config.use_directory_urls, **options
        )

    found = {}
    for each in files:
        if each.src_dir != config.docs_dir:  # one of the theme's
            found[each.src_uri] = each
            continue
        path = f"docs/{each.src_uri}"
        place = file(each.src_uri).dest_uri
        found[path] = file(path, dest_uri=place, inclusion=each.inclusion)
    for each in _ROOT.glob("*.md"):
        found[each.name] = file(each.name)
    waiting = [*found]
    while waiting:
        for path in _linked(waiting.pop()):
            if path not in found:
                found[path] = file(path)
                waiting.append(path)
    return Files(found.values())


def _linked(path: str) -> list[str]:
    """Lists the files of the repository that a page links to."""
    if not path.endswith(_TEXTS):
        return []
    page = _ROOT / path
    targets = [
        (page.parent / each).resolve()
        for each in _LINK.findall(page.read_text())
    ]
    return [
        each.relative_to(_ROOT).as_posix()
        for each in targets
        if each.is_relative_to(_ROOT) and each.is_file()
    ]


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Makes a page of a file of Python."""
    path = page.file.src_uri
    if not path.endswith(".py"):
        return markdown
    page.meta["search"] = {"exclude": True}
    code = page.file.content_string
    return f"# `{path}`\n\n````python\n{code}````\n"
