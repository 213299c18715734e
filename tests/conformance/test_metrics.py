"""/metrics in Prometheus's text format, with what dashboards ask for."""

import math
import re
import time

SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')


def parse(text):
    """{name of a family: (type, [(name, labels, value)])}; anything out of form is an error."""
    assert text.endswith("\n")
    families, current = {}, None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
            assert current not in families, "a family stands in one place"
            assert line.split(" ", 3)[3].strip()
            families[current] = [None, []]
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current and kind in ("counter", "gauge", "histogram")
            families[name][0] = kind
        else:
            name, labels, value = SAMPLE.match(line).groups()
            found = LABEL.findall(labels or "")
            assert sum(len(n) + len(v) + 3 for n, v in found) + max(0, len(found) - 1) == len(labels or ""), line
            assert name in (current, current + "_bucket", current + "_sum", current + "_count"), line
            families[current][1].append((name, dict(found), float(value)))
    return families


def read(http):
    answer = http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(answer.text)


def value(families, name, **labels):
    found = [v for n, l, v in families[name][1] if n == name and labels.items() <= l.items()]
    assert found, f"{name} {labels}"
    return sum(found)


def test_the_format_and_its_conventions(http):
    http.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    families = read(http)
    seen = set()
    for name, (kind, samples) in families.items():
        assert kind and samples, name
        assert name.endswith("_total") == (kind == "counter"), name
        for sample, labels, number in samples:
            key = (sample, *sorted(labels.items()))
            assert key not in seen, "a series stands there once"
            seen.add(key)
            assert not math.isnan(number) and (kind == "gauge" or number >= 0), sample
        if kind == "histogram":
            check_histogram(name, samples)


def check_histogram(name, samples):
    buckets = [(float(labels["le"]), number) for sample, labels, number in samples if sample == name + "_bucket"]
    count = [number for sample, _, number in samples if sample == name + "_count"]
    assert [le for le, _ in buckets] == sorted(le for le, _ in buckets)
    assert [number for _, number in buckets] == sorted(number for _, number in buckets), "they add up"
    assert math.isinf(buckets[-1][0]) and buckets[-1][1] == count[0]
    assert any(sample == name + "_sum" for sample, _, _ in samples)


def test_what_a_dashboard_asks_for(http):
    before = read(http)
    usage = http.post("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Count in steps of 4 from 25, 15 numbers."}]}).json()["usage"]
    after = read(http)

    def grown(name, **labels):
        old = sum(v for n, l, v in before.get(name.removesuffix("_count"), (0, []))[1] if n == name and labels.items() <= l.items())
        family = name.removesuffix("_count")
        return sum(v for n, l, v in after[family][1] if n == name and labels.items() <= l.items()) - old

    assert grown("bicached_completion_tokens_total", model="demo") == usage["completion_tokens"]
    assert grown("bicached_prompt_tokens_total", model="demo") == usage["prompt_tokens"]
    for name in ("request", "first_token", "inter_token", "queue"):
        assert grown(f"bicached_{name}_seconds_count", model="demo") == 1, name
    assert grown("bicached_http_responses_total", route="/v1/chat/completions", status="200") == 1
    assert value(after, "bicached_build_info") == 1
    assert value(after, "bicached_model_info", model="demo") == 1
    for name in ("process_start_time_seconds", "process_resident_memory_bytes", "process_virtual_memory_bytes",
                 "process_open_fds", "process_max_fds", "process_cpu_seconds_total"):
        assert value(after, name) > 0, name
    # Gauges are written behind the step that sent the last token.
    limit = time.monotonic() + 60
    while value(after, "bicached_running") or value(after, "bicached_queued"):
        assert time.monotonic() < limit
        after = read(http)


def test_watching_does_not_fill_the_log(start_server, connect):
    running = start_server()
    http = connect(running.url)
    for _ in range(20):
        for path in ("/health", "/ready", "/metrics", "/ping", "/"):
            assert http.get(path).status_code == 200
    http.get("/v1/models")
    running.stop()
    lines = [line for line in running.lines if " GET " in line]
    assert len(lines) == 1 and "/v1/models" in lines[0], lines
