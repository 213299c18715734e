"""Starts the real server for a test session. BICACHED_BINARY names another binary than build/dev's."""

import contextlib
import os
import pathlib
import queue
import re
import signal
import subprocess
import threading
import time

import httpx
import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_LIMIT_S = 300


def find_binary():
    named = os.environ.get("BICACHED_BINARY")
    candidates = [pathlib.Path(named)] if named else [
        ROOT / "build" / preset / "bicached" for preset in ("release", "dev", "torch")]
    for path in candidates:
        if path.is_file():
            return path
    pytest.exit(f"no server binary: build it, or set BICACHED_BINARY (looked at {candidates})", 2)


class Server:
    """A running server; `url` without /v1."""

    def __init__(self, *flags):
        # BICACHED_* are settings to the server, and these are ours.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BICACHED_")}
        self.process = subprocess.Popen(
            [find_binary(), "serve", "--model", ROOT / "models" / "demo", "--port", "0",
             "--integrity-checks", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        self.lines = []
        self._found = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url = self._found.get(timeout=START_LIMIT_S)
        except queue.Empty:
            self.url = None
        if self.url is None:
            self.kill()
            raise RuntimeError("the server printed no address:\n" + "".join(self.lines))
        self._wait_until_ready()

    def _read(self):
        # To the end: a full pipe would stop the server.
        for line in self.process.stdout:
            self.lines.append(line)
            match = re.search(r"http://127\.0\.0\.1:\d+", line)
            if match:
                self._found.put(match.group())
        self._found.put(None)  # it ended

    def _wait_until_ready(self):
        limit = time.monotonic() + START_LIMIT_S
        while time.monotonic() < limit:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + "/ready").status_code == 200:
                    return
            time.sleep(0.05)
        self.kill()
        raise RuntimeError("the server is not ready:\n" + "".join(self.lines))

    def client(self, **options):
        options.setdefault("max_retries", 0)
        return openai.OpenAI(base_url=self.url + "/v1", api_key="unused", timeout=600, **options)

    def metric(self, name):
        text = httpx.get(self.url + "/metrics").text
        return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE).group(1))

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.terminate()
        try:
            return self.process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@pytest.fixture(scope="session")
def server():
    running = Server()
    yield running
    assert running.stop() == 0, "".join(running.lines[-50:])


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture
def start_server():
    started = []

    def start(*flags):
        started.append(Server(*flags))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.kill()
