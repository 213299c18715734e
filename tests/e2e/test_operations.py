"""What operators and tight machines do to the real program: signals, logs, sockets, limits, hostile clients."""

import collections
import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

import httpx
import pytest

from programs import DEMO, ENVIRONMENT, PROGRAM, ROOT

LONG = {"messages": [{"role": "user", "content": "Count in steps of 6 from 14, 15 numbers."}], "max_tokens": 512,
        "algorithm": "low_confidence", "steps": 512, "eos_early_stop": False, "intra_cache": "none"}
SHORT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


def environment(**more):
    return {**ENVIRONMENT, "OMP_WAIT_POLICY": "passive", **more}


def eventually(condition, limit_s=60):
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.05)
    return False


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


@pytest.fixture
def serve(tmp_path):
    started = []

    def start(*flags, wait=True, **options):
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Process(folder, *flags, **options))
        return started[-1].wait() if wait else started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture
def variant(tmp_path):
    """A model folder whose files are the demonstration model's but for some: text, bytes, or None for none."""

    def make(**changed):
        folder = tmp_path / "model"
        folder.mkdir()
        for path in DEMO.iterdir():
            if path.is_file():
                (folder / path.name).symlink_to(path)
        for name, value in changed.items():
            path = folder / name.replace("__", ".")
            path.unlink(missing_ok=True)
            if isinstance(value, bytes):
                path.write_bytes(value)
            elif value is not None:
                path.write_text(json.dumps(value))
        return folder

    return make


def json_of(name):
    return json.loads((DEMO / name).read_text())


def generate(model):
    done = subprocess.run([PROGRAM, "generate", model, "--chat", "hi"], capture_output=True, text=True,
                          timeout=120, env=environment())
    return done.returncode, done.stdout + done.stderr


# --- signals and the log ---


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


# --- addresses ---


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


# --- limits ---


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


def is_closed(client):
    """Of a socket that does not block."""
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


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


def test_omp_num_threads_and_the_machine_are_told(serve):
    done = subprocess.run([PROGRAM, "info", DEMO, "--json"], capture_output=True, text=True, timeout=120,
                          env=environment(OMP_NUM_THREADS="1"))
    about = json.loads(done.stdout)
    assert about["threads"] == 1
    assert "CPU" in about["machine"] and about["memory"]["prefix_bytes"] > 0
    assert "1 threads compute" in serve(env={"OMP_NUM_THREADS": "1"}).log.read_text()


def test_two_servers_with_one_state_folder(serve, tmp_path):
    state = tmp_path / "state"
    first = serve("--state-dir", state)
    second = serve("--state-dir", state)
    assert "another server works with" in second.log.read_text()
    assert first.chat().status_code == second.chat().status_code == 200
    assert second.stop() == 0 and first.stop() == 0
    assert "another server" not in serve("--state-dir", state).log.read_text()


# --- model folders as they are found ---


def test_files_that_are_none(variant):
    code, text = generate(variant(model__safetensors=b"version https://git-lfs.github.com/spec/v1\nsize 1\n"))
    assert code == 2 and "Git LFS" in text


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
                                  "generation_config.json", "special_tokens_map.json"])
def test_a_pipe_as_a_file_is_refused_by_its_kind(variant, name):
    folder = variant(**{name.replace(".", "__"): None})
    os.mkfifo(folder / name)
    code, text = generate(folder)
    assert code == 2 and "a named pipe" in text and name in text


def with_names(rename, extra=()):
    """The weights under other names."""
    data = (DEMO / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8:8 + size]), data[8 + size:]
    renamed = {(name if name == "__metadata__" else rename(name)): about for name, about in header.items()}
    for name in extra:
        renamed[name] = {"dtype": "F32", "shape": [1], "data_offsets": [len(rest), len(rest) + 4]}
        rest += struct.pack("<f", 1)
    text = json.dumps(renamed).encode()
    return struct.pack("<Q", len(text)) + text + rest


@pytest.mark.parametrize("rename", [
    lambda name: "_orig_mod." + name, lambda name: "module." + name, lambda name: "module._orig_mod." + name,
    lambda name: name.removeprefix("model."), lambda name: "_orig_mod." + name.removeprefix("model."),
    lambda name: "model." + name])
def test_weights_under_names_of_training_code(variant, rename):
    code, text = generate(variant(model__safetensors=with_names(rename)))
    assert code == 0 and "Hello" in text, text


def test_tensors_that_follow_from_the_configuration_are_left_out(variant):
    extra = ["model.transformer.blocks.0.rotary_emb.inv_freq", "model.transformer.rotary_emb.inv_freq"]
    assert generate(variant(model__safetensors=with_names(lambda name: name, extra)))[0] == 0


def test_an_old_tokenizer(variant):
    tokenizer, config = json_of("tokenizer.json"), json_of("tokenizer_config.json")
    del tokenizer["model"]["type"]
    for name in ("bos_token", "eos_token", "added_tokens_decoder"):
        config.pop(name, None)
    code, text = generate(variant(tokenizer__json=tokenizer, tokenizer_config__json=config))
    assert code == 0 and "Hello" in text, text


def test_a_template_of_parts(serve, variant):
    config = json_of("tokenizer_config.json")
    config["chat_template"] = ("{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}"
                               "{% endfor %}")
    server = serve(model=variant(tokenizer_config__json=config))
    messages = [{"role": "system", "content": "s t"}, {"role": "user", "content": [{"type": "text", "text": "u v"}]}]
    answer = server.request("POST", "/apply-template", json={"messages": messages}).json()
    assert answer["prompt"] == "<system>s t<user>u v"


def test_a_snapshot_is_called_by_its_repository(serve, tmp_path):
    folder = tmp_path / "models--org--demo-8b" / "snapshots" / ("0123456789abcdef" * 2)
    folder.parent.mkdir(parents=True)
    shutil.copytree(DEMO, folder, ignore=lambda _, names: [n for n in names if not pathlib.Path(n).suffix])
    assert serve(model=folder).get("/v1/models").json()["data"][0]["id"] == "org/demo-8b"


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


def test_weights_that_are_cut_end_a_start_and_no_server(variant, serve):
    model = variant(model__safetensors=(DEMO / "model.safetensors").read_bytes())
    weights = model / "model.safetensors"
    server = serve("--cache-policy", "off", model=model)
    before = server.chat().json()["choices"]
    os.truncate(weights, 100_000)
    assert server.chat().json()["choices"] == before
    code, text = generate(model)
    assert code == 2
    assert "model.safetensors" in text and "cut" in text


def test_a_long_text_in_pieces_takes_no_gigabytes(serve):
    server = serve()
    before = resident_mb(server)
    text = "q1" * 2_000_000
    answer = server.request("POST", "/tokenize", json={"content": text, "with_pieces": True}).json()
    assert answer["count"] == len(answer["tokens"]) > 1_000_000
    assert "".join(token["piece"] for token in answer["tokens"]) == text
    assert resident_mb(server, "VmHWM") - before < 800
