"""A headless Chromium, spoken to through a pipe (Chrome DevTools Protocol), to look at pages as people do."""

import base64
import json
import os
import select
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome") if os.name == "posix" else ()
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt install chromium)")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    # One process and one session for a page and its frames.
    "--disable-features=IsolateSandboxedIframes",
)


class Browser:
    """One page at a time; `problems` are errors of scripts, things that the page's rules forbade, and requests, but
    those to the server that a page comes from."""

    def __init__(self, profile: Path):
        import fcntl  # not there on Windows

        pipes = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (*os.pipe(), *os.pipe())]
        commands, self.commands, self.answers, answers = pipes
        words = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
        pipe = [(os.POSIX_SPAWN_DUP2, commands, 3), (os.POSIX_SPAWN_DUP2, answers, 4)]  # where Chromium looks for it
        self.process = os.posix_spawn(CHROMIUM, words, os.environ, file_actions=silent + pipe)
        for end in (commands, answers):
            os.close(end)
        self.number, self.read, self.session, self.events, self.problems = 0, b"", None, [], []
        self.known = ("file:", "data:")
        targets = self.ask("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self, seconds: float = 60) -> dict:
        deadline = time.monotonic() + seconds
        while b"\0" not in self.read:
            ready, _, _ = select.select([self.answers], [], [], max(0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            self.read += os.read(self.answers, 2**20)
        text, _, self.read = self.read.partition(b"\0")
        message = json.loads(text)
        self._note(message)
        return message

    def _note(self, message: dict) -> None:
        method, params = message.get("method"), message.get("params")
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["text"])
        elif method == "Log.entryAdded":
            self.problems.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(self.known):
            self.problems.append(params["request"]["url"])
        elif method:
            self.events.append(method)

    def open(self, page: Path | str, width: int = 1280, dark: bool = False) -> None:
        """A file, or the address of a server's page."""
        self.problems, self.events = [], []
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self.known = ("file:", "data:") if isinstance(page, Path) else (address, "blob:", "data:")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.ask("Page.navigate", url=address)
        while "Page.loadEventFired" not in self.events:
            self._next()

    def run(self, script: str, frame: bool = False):
        """The value of an expression in the page, or in the first frame of it, whose scripts' names are not seen."""
        where = {}
        if frame:
            inner = self.ask("Page.getFrameTree")["frameTree"]["childFrames"][0]["frame"]["id"]
            where["contextId"] = self.ask("Page.createIsolatedWorld", frameId=inner)["executionContextId"]
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, **where)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        code = {"Enter": 13, " ": 32, "Tab": 9, "ArrowRight": 39, "ArrowDown": 40}[key]
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def wait_for(self, script: str, frame: bool = False, seconds: float = 60):
        """The value of an expression as soon as it is true; frames come and go."""
        deadline, found = time.monotonic() + seconds, None
        while not found:
            assert time.monotonic() < deadline, f"still not so: {script}"
            time.sleep(0.1)
            with suppress(AssertionError, KeyError):
                found = self.run(script, frame)
        return found

    def choose(self, field: str, file: Path) -> None:
        """Gives a file to an input."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=field)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def screenshot(self, file: Path) -> None:
        """What is in the window."""
        picture = self.ask("Page.captureScreenshot")["data"]
        file.write_bytes(base64.b64decode(picture))

    def printed_pages(self) -> int:
        pdf = base64.b64decode(self.ask("Page.printToPDF", printBackground=True)["data"])
        return pdf.count(b"/Type /Page\n") or pdf.count(b"/Type /Page ")

    def close(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.commands)
        os.close(self.answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()
