"""The programs that tests run: those of build/release, or of the folder of the one that BICACHED_BINARY names."""

import contextlib
import json
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

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = os.environ.get("BICACHED_BINARY", str(ROOT / "build" / "release" / "bicached"))
LAB = str(pathlib.Path(PROGRAM).with_name("bicached-lab"))
# Without our own variables: the program refuses those it doesn't know.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("BICACHED_")}
DEMO = ROOT / "models" / "demo"
START_LIMIT_S = 300
PRICES = json.loads((DEMO / "example_messages.json").read_text())


def run(*arguments, program=PROGRAM, env=None, stdin=""):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, input=stdin, timeout=600,
                          env={**ENVIRONMENT, **(env or {})})


def fails(*arguments, program=PROGRAM, **more):
    done = run(*arguments, program=program, **more)
    assert done.returncode == 2, done
    assert done.stderr.startswith(pathlib.Path(program).name + ": ")
    return done.stderr


def run_server(*arguments):
    server = subprocess.Popen([PROGRAM, "serve", "--model", str(DEMO), *arguments], stdout=subprocess.PIPE, text=True,
                              env=ENVIRONMENT)
    lines = [server.stdout.readline(), server.stdout.readline()]
    return server, lines


class Server:
    """A running server; `url` without /v1."""

    def __init__(self, *flags, command=(PROGRAM,), model=DEMO, env=ENVIRONMENT, cwd=None):
        self.process = subprocess.Popen(
            [*command, "serve", "--model", model, "--port", "0", "--integrity-checks", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=cwd)
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
