"""deploy/: every number that it asks for exists, and its own linters take what they can check here."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time

import httpx
import pytest

from programs import ROOT

DEPLOY = ROOT / "deploy"
METRIC = re.compile(r"\b(?:bicached|process)_[a-z_]+")


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def tool(name):
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def expressions_of_dashboard():
    dashboard = json.loads((DEPLOY / "grafana/dashboards/bicached.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


@pytest.fixture(scope="module")
def metric_names(server):
    assert server.client().completions.create(model="demo", prompt="The red", max_tokens=4).choices
    httpx.get(server.url + "/nothing")
    text = httpx.get(server.url + "/metrics").text
    return {re.match(r"[a-z_]+", line).group() for line in text.splitlines() if line and line[0] != "#"}


def test_the_dashboard_asks_for_metrics_that_exist(metric_names):
    asked = {name for text in expressions_of_dashboard() for name in METRIC.findall(text)}
    assert len(asked) > 20
    assert asked - metric_names == set()


def test_the_alerts_ask_for_metrics_that_exist(metric_names):
    text = (DEPLOY / "prometheus/alerts.yml").read_text()
    expressions = re.findall(r"expr: (?:\|\n((?:          .*\n)+)|(.*))", text)
    asked = {name for pair in expressions for name in METRIC.findall("".join(pair))}
    assert len(expressions) == text.count("- alert:") and len(asked) > 5
    assert asked - metric_names == set()


def test_every_alert_is_explained():
    page = (ROOT / "docs/operations.md").read_text()
    for name in re.findall(r"- alert: (\w+)", (DEPLOY / "prometheus/alerts.yml").read_text()):
        assert f"`{name}`" in page, name


def test_prometheus_takes_configuration_and_alerts():
    promtool, folder = tool("promtool"), DEPLOY / "prometheus"
    run(promtool, "check", "config", "prometheus.yml", cwd=folder)
    run(promtool, "check", "rules", "alerts.yml", cwd=folder)
    run(promtool, "test", "rules", "alerts_test.yml", cwd=folder)


def test_prometheus_takes_the_metrics(server):
    promtool = tool("promtool")
    run(promtool, "check", "metrics", input=httpx.get(server.url + "/metrics").text)


def test_prometheus_reads_the_expressions_of_the_dashboard(tmp_path):
    promtool = tool("promtool")
    rules = [{"record": f"panel:{i}", "expr": re.sub(r"\$__rate_interval", "5m", text).replace("$instance", ".*")}
             for i, text in enumerate(expressions_of_dashboard())]
    # JSON is YAML.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", tmp_path / "rules.yml")


@pytest.fixture
def nginx(tmp_path, server):
    """deploy/nginx in front of the server, without TLS; gives its address."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") or pytest.skip("nginx is not installed")
    text = (DEPLOY / "nginx/bicached.conf").read_text()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = text.replace("127.0.0.1:8080", server.url.removeprefix("http://"))
    text = re.sub(r"listen 443 ssl;", f"listen 127.0.0.1:{port};", text)
    text = re.sub(r"(listen \[::\]|ssl_).*\n", "", text)
    folders = "".join(f"{name}_temp_path {tmp_path}/{name}; " for name in
                      ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(
        f"user root; daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; {folders}\n{text}\n}}\n")
    process = subprocess.Popen([program, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"])
    url = f"http://127.0.0.1:{port}"
    for _ in range(200):
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url + "/health")
            break
        time.sleep(0.05)
    yield url
    process.terminate()
    process.wait(60)


def test_nginx_passes_streams_long_bodies_and_refusals_on(nginx):
    chat = {"model": "demo", "messages": [{"role": "user", "content": "Count in steps of 4 from 25, 15 numbers."}]}
    with httpx.stream("POST", nginx + "/v1/chat/completions", json={**chat, "stream": True}, timeout=300) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert stream.status_code == 200 and lines[-1] == "data: [DONE]" and len(lines) > 3
    # Longer than nginx's own limit: the server's word, not the proxy's.
    long = httpx.post(nginx + "/v1/chat/completions", timeout=300,
                      json={**chat, "messages": [{"role": "user", "content": "x" * 2_000_000}]})
    assert long.status_code == 400 and long.json()["error"]["code"] == "context_length_exceeded"
    assert httpx.get(nginx + "/metrics").status_code == 200  # this machine may


def test_systemd_takes_the_units(tmp_path):
    verify = tool("systemd-analyze")
    program = tmp_path / "bicached"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name, instance in (("bicached.service", ""), ("bicached@.service", "0")):
        text = (DEPLOY / "systemd" / name).read_text()
        assert "ExecStart=/usr/local/bin/bicached serve" in text
        path = tmp_path / name.replace("@", "@" + instance)
        path.write_text(text.replace("/usr/local/bin/bicached", str(program)))
        done = run(verify, "verify", path, env={**os.environ, "SYSTEMD_LOG_LEVEL": "info"})
        # Other units of the machine may have faults; ours may not.
        assert path.name not in done.stderr, done.stderr
