"""Two servers behind sglang-router and vllm-router, whose policy cache_aware sends a prefix where it was before.

What docs/scale-out.md says is checked here: prefixes, streams, deaths, drains, keys, refusals.
"""

import collections
import contextlib
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from programs import Server

COMMANDS = {"sglang-router": ["launch"], "vllm-router": []}
PREFIXES = {name: f"{name} is a shop. Answer briefly. Price list:\n"
            + "\n".join(f"- {colour} mug: {i} coins" for i, colour in enumerate(["red", "blue", "green", "soft"] * 4))
            for name in ("Cedar", "Birch", "Maple", "Aspen")}
# Runs until its client goes: 512 tokens, one a forward.
LONG = {"model": "demo", "prompt": "The red", "max_tokens": 512, "ignore_eos": True, "algorithm": "low_confidence",
        "steps": 512, "intra_cache": "none", "cache": {"policy": "off"}, "stream": True}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(condition, limit_s=60):
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.05)


class Fleet:
    """Two servers, and a router in front that asks them for /ready."""

    def __init__(self, name, server_flags, router_flags, key=None):
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.router = None
        self.servers = [Server("--num-threads", "1", *server_flags) for _ in range(2)]
        self.url = f"http://127.0.0.1:{free_port()}"
        program = pathlib.Path(sys.executable).parent / name
        self.router = subprocess.Popen(
            [program if program.exists() else shutil.which(name), *COMMANDS[name],
             "--host", "127.0.0.1", "--port", self.url.rsplit(":", 1)[1], "--prometheus-port", str(free_port()),
             "--policy", "cache_aware", "--health-check-endpoint", "/ready", "--health-check-interval-secs", "1",
             "--health-failure-threshold", "1", "--health-success-threshold", "1",
             # A refused request is tried again until the router has asked for /ready once more.
             "--retry-initial-backoff-ms", "500", "--retry-max-backoff-ms", "2000",
             "--worker-urls", *[server.url for server in self.servers], *router_flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(self.answers, 120)

    def answers(self):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url + "/v1/models", headers=self.headers, timeout=10).status_code == 200

    def chat(self, shop, question="How much is the blue mug?", headers=None, **fields):
        body = {"model": "demo", "max_tokens": 16, **fields,
                "messages": [{"role": "system", "content": PREFIXES[shop]}, {"role": "user", "content": question}]}
        return httpx.post(self.url + "/v1/chat/completions", json=body, timeout=300,
                          headers=self.headers if headers is None else headers)

    def worker_of(self, answer):
        """Ids begin with what tells the process."""
        assert answer.status_code == 200, answer.text
        return answer.json()["id"].split("-")[1][:16]

    def running(self):
        """The servers that decode something."""
        alive = [s for s in self.servers if s.process.poll() is None]
        return [s for s in alive if s.metric("bicached_running")]

    def stop(self):
        for process in [s.process for s in self.servers] + ([self.router] if self.router else []):
            process.kill()
            process.wait()


@pytest.fixture(params=COMMANDS)
def start_fleet(request):
    name = request.param
    if not (pathlib.Path(sys.executable).parent / name).exists() and not shutil.which(name):
        pytest.skip(f"{name} is not installed: scripts/bootstrap does it")
    started = []

    def start(*server_flags, router_flags=(), **options):
        started.append(Fleet(name, server_flags, router_flags, **options))
        return started[-1]

    yield start
    for fleet in started:
        fleet.stop()


def num_chats(server):
    text = httpx.get(server.url + "/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
               if line.startswith('bicached_http_responses_total{route="/v1/chat/completions"'))


def test_prefixes_stay_with_their_worker_and_nothing_is_lost_when_workers_go(start_fleet):
    fleet = start_fleet()

    # A stream comes through in parts, and keeps the server it is on busy: new prefixes go to the other.
    with httpx.stream("POST", fleet.url + "/v1/completions", json=LONG, timeout=300) as stream:
        parts = stream.iter_text()
        assert next(parts).startswith("data: ")
        eventually(fleet.running)
        busy = fleet.running()[0]
        elsewhere = {shop: fleet.worker_of(fleet.chat(shop)) for shop in ("Cedar", "Birch")}
        assert fleet.running() == [busy]
        assert len(set(elsewhere.values())) == 1 and num_chats(busy) == 0
    # The client of the stream is gone, and its server hears of it.
    eventually(lambda: not fleet.running())
    workers = collections.defaultdict(set)
    for i in range(3):
        for shop in PREFIXES:
            workers[shop].add(fleet.worker_of(fleet.chat(shop, f"How much is the {['red', 'blue', 'soft'][i]} mug?")))
    assert all(len(of_shop) == 1 for of_shop in workers.values()), workers
    assert {shop: {worker} for shop, worker in elsewhere.items()} == {shop: workers[shop] for shop in elsewhere}

    # The server that has these prefixes drains: it goes on with what it has, and gets nothing new.
    other = busy
    drained = next(server for server in fleet.servers if server is not other)
    assert num_chats(drained) > 0
    with httpx.stream("POST", drained.url + "/v1/completions", json=LONG, timeout=300) as stream:
        next(stream.iter_text())
        drained.terminate()
        before = num_chats(other)
        for i in range(8):
            assert fleet.chat(list(PREFIXES)[i % 4]).status_code == 200
        assert num_chats(other) == before + 8
    assert drained.process.wait(120) == 0
    for shop in PREFIXES:
        assert fleet.chat(shop).status_code == 200


def test_a_killed_worker_loses_no_later_request(start_fleet):
    fleet = start_fleet()
    with ThreadPoolExecutor(4) as pool:
        for shop in PREFIXES:
            assert fleet.chat(shop).status_code == 200
        victim = max(fleet.servers, key=num_chats)  # where the prefixes are
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        answers = list(pool.map(lambda i: fleet.chat(list(PREFIXES)[i % 4]).status_code, range(16)))
    assert answers == [200] * 16


def test_keys_go_through(start_fleet, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sk-worker\n")
    fleet = start_fleet("--api-key-file", str(keys), key="sk-worker")
    assert fleet.chat("Cedar").status_code == 200
    refused = fleet.chat("Cedar", headers={"Authorization": "Bearer nope"})
    assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
    assert fleet.chat("Cedar", headers={}).status_code == 401


def test_a_full_servers_retry_after_goes_through(start_fleet):
    fleet = start_fleet("--max-queued", "1", "--max-running", "1", router_flags=["--disable-retries"])
    with contextlib.ExitStack() as open_connections:
        for server in fleet.servers:  # each decodes one request, and one waits
            for metric in ("bicached_running", "bicached_queued"):
                host, port = server.url.removeprefix("http://").split(":")
                connection = open_connections.enter_context(socket.create_connection((host, int(port))))
                body = json.dumps(LONG).encode()
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                                   b"Content-Length: %d\r\n\r\n" % len(body) + body)
                eventually(lambda: server.metric(metric) == 1)
        answers = [fleet.chat("Cedar") for _ in range(3)]
    for answer in answers:
        assert answer.status_code == 429 and answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
