"""A headless Chromium, spoken to over a pipe: what a page does and shows."""

import base64
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import time

_SECONDS = 120  # without an answer


@contextlib.contextmanager
def started(profile: pathlib.Path):
    """Starts Chromium with an empty profile and gives it; ends it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "Debian's package chromium must be installed"
    commands, answers = os.pipe(), os.pipe()

    def connect():
        # It reads commands from descriptor 3 and answers to 4.
        ends = os.dup(commands[0]), os.dup(answers[1])
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    arguments = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update "
        "--disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
    )
    process = subprocess.Popen(
        [program, *arguments.split(), f"--user-data-dir={profile}"],
        preexec_fn=connect,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands[0])
    os.close(answers[1])
    try:
        yield Chromium(commands[1], answers[0])
    finally:
        process.kill()
        process.wait()
        os.close(commands[1])
        os.close(answers[0])


class Chromium:
    """One tab, by the DevTools protocol.

    Attributes:
        events: All that were reported since the last `open`.
    """

    def __init__(self, commands: int, answers: int):
        self._commands = commands
        self._answers = answers
        self._buffer = b""
        self._number = 0
        self._session = None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")
        self._session = self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters):
        """Sends a command and returns its result."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def _read(self):
        while b"\0" not in self._buffer:
            part = os.read(self._answers, 1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, width: int, height: int, scheme: str) -> None:
        """Loads a page in a window of so many pixels, light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not self.of("Page.loadEventFired"):
            self.events.append(self._read())

    def of(self, method: str) -> list[dict]:
        """Lists the parameters of the events of one kind."""
        return [
            event["params"]
            for event in self.events
            if event.get("method") == method
        ]

    def complaints(self, harmless: str = r"\b\B") -> list[str]:
        """Lists all that the console has, and what could not be loaded."""
        kinds = "Log.entryAdded", "Runtime.consoleAPICalled"
        kinds += "Runtime.exceptionThrown", "Network.loadingFailed"
        found = [str(each) for kind in kinds for each in self.of(kind)]
        return [each for each in found if not re.search(harmless, each)]

    def evaluate(self, expression: str):
        """Gives the value of an expression of JavaScript."""
        found = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str):
        """Evaluates until the value is true, and gives it."""
        end = time.monotonic() + _SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.2)
        return value

    def screenshot(self, path: pathlib.Path) -> None:
        """Writes a PNG of the whole page."""
        found = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(found["data"]))
