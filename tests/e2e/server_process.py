"""The real program, with the streams and limits that a test chooses."""

import signal
import subprocess
import time

import httpx

from programs import DEMO, ENVIRONMENT, PROGRAM

LONG = {"messages": [{"role": "user", "content": "Count in steps of 6 from 14, 15 numbers."}], "max_tokens": 512,
        "algorithm": "low_confidence", "steps": 512, "eos_early_stop": False, "intra_cache": "none"}
SHORT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


def eventually(condition, limit_s=300):
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.05)
    return False


def environment(**more):
    """None takes a variable away."""
    return {name: value for name, value in {**ENVIRONMENT, **more}.items() if value is not None}


class Process:
    """A server whose streams and limits the test chooses; its log is in a file unless told otherwise."""

    def __init__(self, folder, *flags, model=DEMO, before=(), env=None, **popen):
        self.log, self.out = folder / "log", folder / "out"
        popen.setdefault("stdout", open(self.out, "wb"))
        popen.setdefault("stderr", open(self.log, "wb"))
        self.process = subprocess.Popen(
            [*before, PROGRAM, "serve", "--model", model, "--port", "0", *flags],
            stdin=subprocess.DEVNULL, env=environment(**(env or {})), **popen)

    def wait(self):
        """Until it says where it listens."""
        assert eventually(lambda: " serves " in self.out.read_text() or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.log.read_text()
        self.place = self.out.read_text().split(" at ")[1].split("\n")[0].split(", ")[0]
        return self

    def request(self, method, path, **options):
        if self.place.startswith("unix:"):
            transport = httpx.HTTPTransport(uds=self.place[5:])
            with httpx.Client(transport=transport, timeout=120) as client:
                return client.request(method, "http://localhost" + path, **options)
        return httpx.request(method, self.place + path, timeout=120, **options)

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def chat(self, body=SHORT, **options):
        return self.request("POST", "/v1/chat/completions", json=body, **options)

    @property
    def port(self):
        return int(self.place.rsplit(":", 1)[1])

    def stop(self, limit_s=60):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit_s)


def generate(model):
    done = subprocess.run([PROGRAM, "generate", model, "--chat", "hi"], capture_output=True, text=True,
                          timeout=120, env=ENVIRONMENT)
    return done.returncode, done.stdout + done.stderr
