"""deploy/: every number that it asks for exists, and its own linters take what they can check here."""

import json
import os
import re
import shutil
import subprocess

import httpx
import pytest

from conftest import ROOT

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
