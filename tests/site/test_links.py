"""Each link of the built site leads to a page, and to a place on it."""

import html.parser
import os
import pathlib
import urllib.parse

import pytest

SITE = pathlib.Path(__file__).parents[2] / "site"
LOADED = {"script": "src", "img": "src", "link": "href"}


class Page(html.parser.HTMLParser):
    """Reads the names of places, the links, and what is loaded."""

    def __init__(self, path):
        super().__init__()
        # Browsers know the first two on every page.
        self.places, self.links, self.loaded = {"", "top"}, set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.places |= {attributes.get("id"), attributes.get("name")}
        if tag == "a":
            self.links.add(urllib.parse.urlsplit(attributes.get("href", "")))
        elif tag in LOADED:
            url = attributes.get(LOADED[tag], "")
            self.loaded.add(urllib.parse.urlsplit(url))


@pytest.fixture(scope="module")
def pages():
    return {path: Page(path) for path in sorted(SITE.rglob("*.html"))}


def target(page, url):
    """The file that a link of a page leads to."""
    path = urllib.parse.unquote(url.path)
    if path.startswith("/"):  # on the page for errors
        path = SITE / path[1:]
    found = pathlib.Path(os.path.normpath(page.parent / path))
    return found / "index.html" if found.is_dir() else found


def test_links_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for url in page.links | page.loaded:
            if url.scheme or url.netloc:
                continue
            other = target(path, url) if url.path else path
            place = urllib.parse.unquote(url.fragment)
            known = pages[other].places if other in pages else {""}
            if not other.is_file() or place not in known:
                broken.append((str(path), url.geturl()))
    assert not broken
    assert len(pages) > 50


def test_nothing_is_loaded_from_elsewhere(pages):
    found = {url[:2] for page in pages.values() for url in page.loaded}
    assert found <= {("", ""), ("data", "")}
