"""What tight machines and hostile clients do to the real program: descriptors, tasks, memory."""

import contextlib
import os
import pathlib
import resource
import shutil
import socket
import time

import pytest

from server_process import eventually


def test_without_descriptors_the_log_stays_quiet(serve):
    server = serve(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(80)]
    assert eventually(lambda: "can't accept" in server.log.read_text())
    before, begin = server.log.read_text().count("can't accept"), time.monotonic()
    time.sleep(2)
    after = server.log.read_text().count("can't accept")
    assert after - before <= time.monotonic() - begin + 1
    for client in held:
        client.close()
    assert server.chat().status_code == 200


@contextlib.contextmanager
def many_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 10_000:
        pytest.skip("needs 10,000 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_closed(client):
    """Of a socket that does not block."""
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_idle_connections_keep_nobody_out(serve):
    with many_open_files():
        # Nobody is closed for having been idle too long meanwhile.
        server = serve("--keep-alive-ms", "600000")
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(4200)]
        assert server.chat().status_code == 200
        for client in idle:
            client.settimeout(0)
        closed = sum(is_closed(client) for client in idle)
        assert closed >= 4200 - 4096
        assert not is_closed(idle[-1])
        for client in idle:
            client.close()


@pytest.mark.parametrize("arrived", [0, 60_000])
def test_clients_that_take_all_memory_end_no_server(serve, arrived):
    # A limit of address space stands for a machine that gives no more: an allocation fails. It leaves
    # less than what bodies that arrive may take, with what the program has set aside.
    with many_open_files():
        server = serve("--cache-policy", "off")
        pid = server.process.pid
        used = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.prlimit(pid, resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(4000)]
        head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n"
        for i, client in enumerate(held):
            with contextlib.suppress(OSError):
                client.sendall(head + b" " * min(arrived, 60_000 if i % 3 else 16_000))
        assert server.get("/health").status_code == 200
        for client in held:
            client.close()
        resource.prlimit(pid, resource.RLIMIT_AS, before)
        assert server.chat().status_code == 200
        assert ("a connection was ended" in server.log.read_text()) == (arrived > 0)
        assert server.stop() == 0


def test_few_tasks(serve):
    """A user's limit of processes stands for a container's: both refuse new threads."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root may become another user")
    user = ("setpriv", "--reuid=64321", "--regid=64321", "--clear-groups")

    def limit(count):
        return lambda: resource.setrlimit(resource.RLIMIT_NPROC, (count, count))

    server = serve(before=user, preexec_fn=limit(40))
    assert "HTTP threads can be started" in server.log.read_text()
    assert server.chat().status_code == 200
    assert server.stop() == 0
    server = serve(wait=False, before=user, preexec_fn=limit(6))
    assert server.process.wait(60) == 2
    assert "threads can be started" in server.log.read_text()


def resident_mb(server, which="VmRSS"):
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split(which + ":")[1].split()[0]) / 1024


def test_rows_of_every_number_leave_no_kernels_behind(serve):
    # Libraries compile a product for each number of rows, and would keep a thousand of each kind.
    server = serve("--dtype", "bfloat16", "--cache-policy", "off")

    def ask(lengths):
        for length in lengths:
            body = {"prompt": [5] * length, "max_tokens": 1}
            assert server.request("POST", "/v1/completions", json=body).status_code == 200

    ask(range(601, 0, -100))  # buffers of the longest
    before = resident_mb(server)
    ask(range(1, 600, 6))
    assert resident_mb(server) - before < 60, "megabytes"


def test_an_idle_server_keeps_no_memory_of_its_busiest_moment(serve):
    # A prompt's keys and values are 24 KB a token, buffers of a forward 14 KB a row.
    server = serve("--dtype", "float32", "--cache-policy", "off")
    one, sixteen = [5] * 900, [[5 + i] * 900 for i in range(16)]
    for prompt in (one, sixteen):
        body = {"prompt": prompt, "max_tokens": 1}
        assert server.request("POST", "/v1/completions", json=body).status_code == 200
        if prompt is one:
            before = resident_mb(server)
    assert resident_mb(server, "VmHWM") - before > 300, "keys and values of 13,500 more tokens"
    assert eventually(lambda: resident_mb(server) - before < 60)


def test_unfinished_heads_are_bounded_and_given_back(serve):
    head = b"GET /health HTTP/1.1\r\nHost: x\r\n" + (b"X: " + b"a" * 7800 + b"\r\n") * 8
    with many_open_files():
        server = serve()
        assert server.chat().status_code == 200
        time.sleep(11)  # an idle server has given back what the start took
        before = resident_mb(server)
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(3000)]
        for client in held:
            with contextlib.suppress(OSError):  # 188 MB together
                client.sendall(head)
        assert server.get("/health").status_code == 200
        assert resident_mb(server, "VmHWM") - before < 80
        for client in held:
            client.close()
        assert eventually(lambda: resident_mb(server) - before < 25)


def test_a_long_text_in_pieces_takes_no_gigabytes(serve):
    server = serve()
    before = resident_mb(server)
    text = "q1" * 2_000_000
    answer = server.request("POST", "/tokenize", json={"content": text, "with_pieces": True}).json()
    assert answer["count"] == len(answer["tokens"]) > 1_000_000
    assert "".join(token["piece"] for token in answer["tokens"]) == text
    assert resident_mb(server, "VmHWM") - before < 800
