"""The pages and TensorBoard in a real browser.

Run by `make test-browser`, which needs Debian's package chromium; see
`tests/training/test_report.py` for what needs none.
"""

import re
import subprocess
import sys
import time

import pytest

from tests.training.browser.chromium import started
from tests.training.runs import STUDENT, run

_TEXT = """(() => {
  const found = [];
  const walk = node => {
    if (node.shadowRoot) walk(node.shadowRoot);
    for (const child of node.childNodes) {
      if (child.nodeType === 3) found.push(child.data.trim());
      else if (!/STYLE|SCRIPT/.test(child.nodeName)) walk(child);
    }
  };
  walk(document);
  return found.join("\\n");
})()"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with started(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def compared(folder, data, teacher):
    """A comparison of MHGD with the student alone."""
    path = folder / "compared"
    run(
        "compare",
        *data,
        *STUDENT[:2],
        f"--teacher={teacher}",
        "--methods=student,mhgd",
        "--set=mhgd.num_heads=2",
        "--set=mhgd.preparation_epochs=1",
        "--trials=1",
        f"--run={path}",
    )
    return path


def requests(chromium):
    urls = [
        each["request"]["url"]
        for each in chromium.of("Network.requestWillBeSent")
    ]
    return [url for url in urls if not url.startswith(("data:", "blob:"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_a_page_shows_all_and_asks_for_nothing(
    chromium, compared, tmp_path, kind, width, scheme
):
    folder = compared / "mhgd_0" if kind == "run" else compared
    url = (folder / "report.html").as_uri()
    chromium.open(url, width, 900, scheme)
    assert requests(chromium) == [url]
    assert chromium.complaints() == []
    count, loaded = chromium.evaluate(
        "[document.images.length, [...document.images].filter("
        "image => image.complete && image.naturalWidth > 0).length]"
    )
    assert loaded == count > 20
    # Nothing is wider than the window but what scrolls by itself.
    assert chromium.evaluate(
        "document.documentElement.scrollWidth <= innerWidth"
    )
    colour = chromium.evaluate(
        "getComputedStyle(document.body).backgroundColor"
    )
    assert (
        colour
        == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    )
    widths = chromium.evaluate(
        "[...document.querySelectorAll('figure img')].map("
        "image => image.clientWidth)"
    )
    assert len(widths) > 2 and min(widths) > 250
    chromium.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


@pytest.fixture(scope="module")
def tensorboard(compared, tmp_path_factory):
    """TensorBoard on the comparison: its address."""
    output = tmp_path_factory.mktemp("tensorboard") / "output"
    with open(output, "w") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tensorboard.main",
                f"--logdir={compared}",
                "--host=127.0.0.1",
                "--port=0",
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        while not (found := re.search(r"http://\S+", output.read_text())):
            assert process.poll() is None, output.read_text()
            time.sleep(0.1)
        yield found[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "tab, shown",
    [
        (
            "timeseries",
            ["epoch_mhgd", "epoch_learning_rate", "attention_difference"],
        ),
        ("images", ["attention", "attended images", "heads"]),
        ("hparams", ["method", "mhgd.num_heads", "accuracy"]),
    ],
)
def test_tensorboard_shows_a_comparison(chromium, tensorboard, tab, shown):
    chromium.open("about:blank", 1200, 1600, "light")
    chromium.open(f"{tensorboard}#{tab}", 1200, 1600, "light")
    for text in shown:
        chromium.wait_for(f"{_TEXT}.split('\\n').includes('{text}')")
    if tab == "images":
        chromium.wait_for(
            f"/step\\s+\\d+/.test({_TEXT}) && "
            f"{_TEXT}.includes('mhgd_0/logs/attention')"
        )
    assert all(url.startswith(tensorboard) for url in requests(chromium))
    # TensorBoard's own page warns of what it uses.
    assert chromium.complaints("'(type|level)': 'warning'") == []
