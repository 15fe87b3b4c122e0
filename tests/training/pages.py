"""What must hold for every page that a program writes."""

import base64
import html.parser
import re
import xml.etree.ElementTree as tree

_DRAWING = "data:image/svg+xml;base64,"
_VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; collects what a page refers to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.sources = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        assert not any(name.startswith("on") for name in names)
        self.sources += [
            value for name, value in attributes if name in ("src", "href")
        ]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in _VOID:
            self.open.pop()


def assert_self_contained(text):
    """No script, no picture from elsewhere; each drawing is well-formed."""
    page = Page(text)
    assert "script" not in page.tags
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"url\(|@import|https?:", text)
    page.drawings = [
        base64.b64decode(source.removeprefix(_DRAWING)).decode()
        for source in page.sources
        if source.startswith(_DRAWING)
    ]
    for drawing in page.drawings:
        tree.fromstring(drawing)
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    return page
