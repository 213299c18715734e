"""What operators do to the real program: signals, logs, addresses, settings of the machine."""

import collections
import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import threading

import httpx
import pytest

from programs import DEMO, PROGRAM
from server_process import environment, eventually, LONG, SHORT


def test_sighup_reads_keys_and_log_file_anew_and_streams_go_on(serve, tmp_path):
    keys, log = tmp_path / "keys", tmp_path / "server.log"
    keys.write_text("old\n")
    server = serve("--api-key-file", keys, "--log-file", log)
    old, new = {"Authorization": "Bearer old"}, {"Authorization": "Bearer new"}
    url = server.place + "/v1/chat/completions"
    with httpx.stream("POST", url, json={**LONG, "stream": True}, headers=old, timeout=120) as stream:
        lines = stream.iter_lines()
        next(lines)
        keys.write_text("new\n")
        log.rename(tmp_path / "server.log.1")
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
            server.process.send_signal(number)
        assert eventually(lambda: server.get("/v1/models", headers=new).status_code == 200)
        assert server.get("/v1/models", headers=old).status_code == 401
        assert list(lines)[-2] == "data: [DONE]"
    assert log.exists() and "read anew" in log.read_text()
    assert server.stop() == 0


def test_a_log_that_nobody_reads_stops_nothing(serve):
    ours, theirs = os.pipe()
    server = serve(stderr=theirs)
    with httpx.Client(base_url=server.place) as client:
        for _ in range(2000):
            assert client.get("/v1/models").status_code == 200
        dropped = next(line for line in client.get("/metrics").text.splitlines()
                       if line.startswith("bicached_log_lines_dropped_total "))
    assert float(dropped.split()[1]) > 0
    assert server.stop() == 0
    os.close(ours)
    os.close(theirs)


def test_health_checks_do_not_fill_the_log(serve):
    server = serve()
    for _ in range(5):
        for path in ("/health", "/ready", "/metrics"):
            assert server.get(path).status_code == 200
    server.get("/v1/models")
    lines = server.log.read_text().splitlines()
    assert not [line for line in lines if "/health" in line or "/ready" in line or "/metrics" in line]
    assert [line for line in lines if "GET /v1/models 200" in line]


def test_a_client_writes_no_fields_and_no_lines_into_a_json_log(serve):
    server = serve("--log-format", "json")
    for path in ('/a","level":"error","x":"b', "/%0a%22%7d", "/%1b%5b31m", "/%ff%fe", "/%e2%80%ae", "/\\"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert client.recv(9999)
    server.chat({**SHORT, 'a","level":"error': 1, "\u2028\n": 2})
    for line in server.log.read_bytes().decode("ascii").splitlines():
        assert set(json.loads(line)) == {"time", "level", "message"}
        assert json.loads(line)["level"] == "info", line


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_streams(serve, closed, tmp_path):
    path = tmp_path / "x.sock"
    server = serve("--host", path, wait=False, preexec_fn=lambda: [os.close(fd) for fd in closed])
    server.place = f"unix:{path}"

    def is_ready():
        with contextlib.suppress(httpx.TransportError):
            return server.get("/ready").status_code == 200

    assert eventually(is_ready)
    assert server.chat().status_code == 200
    assert server.stop() == 0


def test_sigterm_with_an_unfinished_body_ends_in_time(serve):
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert server.get("/health").status_code == 200
        assert server.stop(20) == 0
        assert client.recv(9999).startswith(b"HTTP/1.1 503")


def test_a_drain_under_load_answers_who_is_connected(serve):
    server = serve("--max-running", "4", "--max-queued", "8")
    seen, lock = collections.Counter(), threading.Lock()

    def client():
        while True:
            try:
                with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                    body = json.dumps(SHORT).encode()
                    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                                       b"Content-Length: %d\r\n\r\n" % len(body) + body)
                    answer = connection.recv(99).split(b" ")
                result = answer[1].decode() if len(answer) > 1 else "nothing"
            except ConnectionRefusedError:
                return
            except OSError as error:
                result = type(error).__name__
            with lock:
                seen[result] += 1

    threads = [threading.Thread(target=client) for _ in range(48)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: seen["200"] > 10)
    assert server.stop() == 0
    for thread in threads:
        thread.join()
    lost = sum(count for result, count in seen.items() if result not in ("200", "429", "503"))
    assert seen["503"] > 0, seen
    # Between the last look at the listening socket and its end there is no moment, but for the system.
    assert lost <= 1, seen


def test_a_log_that_may_not_grow_ends_nothing(serve, tmp_path):
    log = tmp_path / "server.log"
    server = serve("--log-file", log, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
    for number in range(100):
        assert server.get(f"/nothing/{number}").status_code == 404
    assert log.stat().st_size <= 4096
    assert "bicached_log_lines_dropped_total 0" not in server.get("/metrics").text
    assert server.stop() == 0


def test_addresses_and_unix_sockets(serve, tmp_path):
    path = tmp_path / "b.sock"
    server = serve("--host", f"127.0.0.1,{path}")
    assert server.chat().status_code == 200
    server.place = f"unix:{path}"
    assert server.chat().status_code == 200
    assert "--unix-socket" not in server.out.read_text()
    assert server.stop() == 0
    assert not path.exists()


def test_an_empty_host_variable_is_none(serve):
    assert serve(env={"BICACHED_HOST": ""}).get("/health").status_code == 200


def test_what_can_not_be_bound_says_why(serve):
    for flags, word in (("--host", ""), "host"), (("--host", "no.such.host.invalid"), "no.such.host.invalid"), \
                       (("--host", "192.0.2.1"), "not this machine's"):
        server = serve(*flags, wait=False)
        assert server.process.wait(60) == 2
        assert word in server.log.read_text()
    if os.geteuid() == 0 and shutil.which("setpriv"):
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        server = serve("--port", "80", wait=False, before=user)
        assert server.process.wait(60) == 2
        assert "Permission denied" in server.log.read_text()


def test_omp_num_threads_and_the_machine_are_told(serve):
    done = subprocess.run([PROGRAM, "info", DEMO, "--json"], capture_output=True, text=True, timeout=120,
                          env=environment(OMP_NUM_THREADS="1"))
    about = json.loads(done.stdout)
    assert about["threads"] == 1
    assert "CPU" in about["machine"] and about["memory"]["prefix_bytes"] > 0
    assert "1 threads compute" in serve(env={"OMP_NUM_THREADS": "1"}).log.read_text()


def test_how_computing_threads_wait_is_the_operators_to_say(serve):
    def variables(**env):
        unsaid = dict.fromkeys(("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
        pid = serve(env={**unsaid, **env}).process.pid
        lines = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return dict(line.decode().split("=", 1) for line in lines if line.startswith((b"GOMP_", b"OMP_")))

    assert variables()["GOMP_SPINCOUNT"] == "1000"
    assert variables(GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7"
    assert "GOMP_SPINCOUNT" not in variables(OMP_WAIT_POLICY="active")


def test_two_servers_with_one_state_folder(serve, tmp_path):
    state = tmp_path / "state"
    first = serve("--state-dir", state)
    second = serve("--state-dir", state)
    assert "another server works with" in second.log.read_text()
    assert first.chat().status_code == second.chat().status_code == 200
    assert second.stop() == 0 and first.stop() == 0
    assert "another server" not in serve("--state-dir", state).log.read_text()
