"""scripts/bench.py against the real server: small workloads, numbers that must agree."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from programs import ROOT

BENCH = ROOT / "scripts" / "bench.py"
EVAL = ROOT / "models" / "demo" / "eval" / "eval.jsonl"
REPETITION = ["--prefix-repetition-prefix-len", "24", "--prefix-repetition-suffix-len", "8",
              "--prefix-repetition-num-prefixes", "2", "--prefix-repetition-output-len", "8"]
GROUPS = ["--workload", "generated-shared-prefix", "--gsp-num-groups", "2",
          "--gsp-prompts-per-group", "2", "--gsp-system-prompt-len", "24",
          "--gsp-question-len", "8", "--gsp-output-len", "8"]


def bench(*arguments):
    return subprocess.run([sys.executable, BENCH, *map(str, arguments)],
                          capture_output=True, text=True, timeout=600)


def measure(server, tmp_path, *arguments, status=0):
    """What --json holds, after checks that hold for every run."""
    path = tmp_path / "bench.json"
    done = bench("--base-url", server.url, "--json", path, *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    document = json.loads(path.read_text())
    for side, summary in document["total"].items():
        check_sums(summary, document["requests"][side])
    return document


def check_sums(summary, requests):
    ok = [r for r in requests if r["ok"]]
    assert summary["num_ok"] == len(ok) and summary["num_failed"] == len(requests) - len(ok)
    for name in ("prompt_tokens", "output_tokens", "cached_tokens"):
        assert summary[name] == sum(r[name] for r in ok)
    for name in ("forwards", "refreshes", "row_layers"):
        assert summary["diffusion"][name] == sum(r["diffusion"][name] for r in ok)
    assert summary["requests_per_s"] * summary["duration_s"] == pytest.approx(len(ok))
    assert all(0 < r["ttft_ms"] <= r["e2e_ms"] <= summary["duration_s"] * 1000 for r in ok)


def test_prefix_repetition_sends_exact_lengths(server, tmp_path):
    # Deterministic, so that what the server learns in between changes no plan.
    arguments = ["--num-prompts", 5, *REPETITION, "--extra-body", '{"deterministic": true}']
    first, second = (measure(server, tmp_path, *arguments) for _ in range(2))
    requests = first["requests"]["load"]
    assert [r["prompt_tokens"] for r in requests] == [32] * 5
    assert [r["output_tokens"] for r in requests] == [8] * 5
    # The same seed makes the same work.
    assert first["total"]["load"]["diffusion"] == second["total"]["load"]["diffusion"]


def test_shared_prefixes_never_exceed_the_concurrency(server, tmp_path):
    document = measure(server, tmp_path, *GROUPS, "--max-concurrency", 2)
    requests = document["requests"]["load"]
    assert [r["prompt_tokens"] for r in requests] == [32] * 4
    events = [(r["start_ms"], 1) for r in requests]
    events += [(r["start_ms"] + r["e2e_ms"], -1) for r in requests]
    running = 0
    for _, change in sorted(events):
        running += change
        assert running <= 2


def test_a_file_of_conversations(server, tmp_path):
    document = measure(server, tmp_path, "--workload", "jsonl", "--data", EVAL, "--num-prompts", 6)
    assert document["total"]["load"]["num_ok"] == 6
    assert document["total"]["load"]["output_tokens"] > 0


def test_a_failed_request_is_status_1_with_its_message(server, tmp_path):
    document = measure(server, tmp_path, "--num-prompts", 1, *REPETITION,
                       "--extra-body", '{"algorithm": "none of them"}', status=1)
    assert "algorithm" in document["total"]["load"]["first_error"]


def test_interrupted_it_prints_what_was_measured(server):
    process = subprocess.Popen(
        [sys.executable, BENCH, "--base-url", server.url, "--num-prompts", "1000", *REPETITION,
         "--max-concurrency", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that puts the tests into the background has them ignore it; children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    finished = server.metric("bicached_forwards_total")
    while server.metric("bicached_forwards_total") < finished + 20 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "0 failed when interrupted" in output
    assert "Traceback" not in errors


def test_compare_cache_runs_both_sides_in_turn(server, tmp_path):
    # One at a time: what runs together can't take a prefix from each other.
    document = measure(server, tmp_path, *GROUPS, "--gsp-system-prompt-len", 160, "--compare-cache",
                       "--rounds", 2, "--cache-policy", "full", "--max-concurrency", 1)
    assert len(document["rounds"]) == 2
    for number, one in enumerate(document["rounds"]):
        off, on = one["off"], one["on"]
        assert off["num_ok"] == on["num_ok"] == 4
        assert off["cached_tokens"] == off["hits"] == off["misses"] == 0
        # Stored prefixes were dropped: the first prompt of each group misses in every round.
        assert on["misses"] >= 2 and on["hits"] + on["misses"] == 4
        assert on["hit_rate"] == on["hits"] / 4
        assert document["ratios"]["requests/s"][number] == pytest.approx(
            on["requests_per_s"] / off["requests_per_s"])
    total = document["total"]["on"]
    assert total["num_ok"] == 8
    assert total["cached_tokens"] >= 128 * total["hits"] > 0


@pytest.mark.parametrize("arguments, part", [
    (["--base-url", "http://127.0.0.1:1"], "no server answers at http://127.0.0.1:1"),
    (["--base-url", "nowhere"], "no server answers at nowhere"),
    (["--num-prompts", "0"], "--num-prompts is 0"),
    (["--extra-body", "[1]"], "must be a JSON object"),
    (["--workload", "jsonl"], "--data"),
    (["--nothing"], "--nothing"),
])
def test_a_bad_call_says_what_is_wrong(arguments, part):
    done = bench(*arguments)
    assert done.returncode == 2
    assert part in done.stderr.splitlines()[-1] and done.stdout == ""
