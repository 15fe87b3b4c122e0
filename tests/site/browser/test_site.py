"""The built site in a real browser; `make test-browser` runs this."""

import functools
import http.server
import pathlib
import threading

import pytest

from tests.training.browser.chromium import started

SITE = pathlib.Path(__file__).parents[3] / "site"
# Tables, formulas, pictures, code, the outputs of a guide, signatures.
PAGES = [
    "",
    "methods/",
    "evidence/",
    "programs/",
    "guides/photos_to_int8/",
    "reference/features/",
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    """Of a server of the site: pages load their search by its address."""
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with started(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits_its_window_and_is_whole(chromium, address, width, scheme):
    for page in PAGES:
        chromium.open(f"{address}{page}", width, 900, scheme)
        assert chromium.complaints() == [], page
        # Nothing is wider than the window but what scrolls by itself.
        assert chromium.evaluate(
            "document.scrollingElement.scrollWidth <= innerWidth"
        ), page
        missing = chromium.evaluate(
            "[...document.images].filter(image => "
            "!image.complete || !image.naturalWidth).map(image => image.src)"
        )
        assert missing == [], page
        shown = chromium.evaluate(
            "document.body.getAttribute('data-md-color-scheme')"
        )
        assert shown == {"light": "default", "dark": "slate"}[scheme], page
