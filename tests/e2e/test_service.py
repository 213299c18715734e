"""What a service manager and a container's runtime see of the real program."""

import os
import pathlib
import signal
import socket
import subprocess

import httpx

from programs import DEMO, ENVIRONMENT, PROGRAM, ROOT


def start(folder, **more):
    return subprocess.Popen(
        [PROGRAM, "serve", "--model", DEMO, "--port", "0"],
        stdout=open(folder / "out", "wb"), stderr=open(folder / "log", "wb"),
        stdin=subprocess.DEVNULL, env={**ENVIRONMENT, **more})


def test_systemd_is_told_when_it_is_ready_and_when_it_drains(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(300)
        process = start(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify"))
        try:
            assert manager.recv(1000) == b"STATUS=loading the model"
            lines = manager.recv(1000).decode().split("\n")
            assert "READY=1" in lines
            log = (tmp_path / "log").read_text()
            url = "http://127.0.0.1:" + log.split("listening on http://127.0.0.1:")[1].split(",")[0]
            assert httpx.get(url + "/ready").status_code == 200
            process.send_signal(signal.SIGTERM)
            assert "STOPPING=1" in manager.recv(1000).decode().split("\n")
            assert process.wait(300) == 0
        finally:
            process.kill()
            process.wait()


def test_the_containers_health_check_is_the_servers_ready(start_server):
    check = ROOT / "deploy" / "healthcheck"
    server = start_server()
    environment = {**os.environ, "BICACHED_PORT": server.url.rsplit(":", 1)[1]}
    assert subprocess.run([check], env=environment, timeout=60).returncode == 0
    assert server.stop() == 0
    assert subprocess.run([check], env=environment, timeout=60, capture_output=True).returncode == 1
