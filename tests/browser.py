"""A headless Chromium, driven through its DevTools protocol over a pair of pipes: no driver and no package is needed."""

import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60.0


def found():
    """The path of a Chromium on this machine; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a headless Chromium; to be closed. What goes wrong in it, and what it asks of the network, is kept."""

    def __init__(self, path, width=1280, height=900):
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        read, self._write = _pipe()
        self._read, write = _pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-breakpad"]
        options.append("--remote-debugging-pipe")

        def hand_over():
            os.dup2(read, 3)
            os.dup2(write, 4)

        # Chromium reads commands from 3 and answers on 4.
        self._process = subprocess.Popen(
            [path, *options, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=hand_over,  # noqa: PLW1509 (two system calls, and no other thread holds what they need)
            close_fds=False,
            start_new_session=True,
        )
        os.close(read)
        os.close(write)
        self._buffer, self._sent = b"", 0
        self.requests, self.errors, self._loaded, self._scripted = [], [], False, True
        targets = self.send("Target.getTargets", own=False)["targetInfos"]
        target = next(one for one in targets if one["type"] == "page")["targetId"]
        self._session = self.send("Target.attachToTarget", own=False, targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.size(width, height)

    def send(self, method, own=True, **parameters):
        """The answer to a command, to the page unless it is not its own."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if own:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._sent:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            self._note(told)

    def _next(self):
        clock = threading.Timer(SECONDS, self._process.kill)
        clock.start()
        try:
            while b"\0" not in self._buffer:
                part = os.read(self._read, 1 << 20)
                if not part:
                    raise RuntimeError("the browser ended, or said nothing for a minute")
                self._buffer += part
        finally:
            clock.cancel()
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        method, told = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(told["entry"]["text"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def open(self, path):
        """Load a file, and wait until it is drawn."""
        self._loaded, self.requests, self.errors = False, [], []
        self.send("Page.navigate", url=Path(path).absolute().as_uri())
        while not self._loaded:
            self._note(self._next())
        if self._scripted:
            self.settle()

    def settle(self):
        """Wait for two frames, in which what has changed is drawn."""
        frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
        self.run(frames)

    def run(self, script):
        """The value of a script's expression."""
        told = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(json.dumps(told["exceptionDetails"]))
        return told["result"].get("value")

    def size(self, width, height, phone=False):
        """The window's size in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def prefer(self, scheme):
        """The system's colours: `light` or `dark`."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def scripts(self, allowed):
        """Whether scripts run, from the next page on."""
        self._scripted = allowed
        self.send("Emulation.setScriptExecutionDisabled", value=not allowed)

    def press(self, key, code=0):
        """Press a key of the keyboard."""
        told = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        if key == "Enter":
            told["text"] = "\r"
        self.send("Input.dispatchKeyEvent", type="keyDown", **told)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)
        self.settle()

    def move(self, x, y):
        """Move the pointer to a place in the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def picture(self, whole=True):
        """A PNG of the page, or of what the window shows of it."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])

    def close(self):
        """End the browser."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for handle in (self._read, self._write):
            os.close(handle)
        self._folder.cleanup()


def _pipe():
    """(read, write) ends, both above the numbers that Chromium wants."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high
