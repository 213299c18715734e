"""scripts/bench.py against the real server: small workloads, numbers that must agree."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT

BENCH = ROOT / "scripts" / "bench.py"
EVAL = ROOT / "models" / "demo" / "eval" / "eval.jsonl"
REPETITION = [
    "--prefix-repetition-prefix-len",
    "24",
    "--prefix-repetition-suffix-len",
    "8",
    "--prefix-repetition-num-prefixes",
    "2",
    "--prefix-repetition-output-len",
    "8",
]
GROUPS = [
    "--workload",
    "generated-shared-prefix",
    "--gsp-num-groups",
    "2",
    "--gsp-prompts-per-group",
    "2",
    "--gsp-system-prompt-len",
    "24",
    "--gsp-question-len",
    "8",
    "--gsp-output-len",
    "8",
]


def bench(*arguments):
    return subprocess.run(
        [sys.executable, BENCH, *map(str, arguments)], capture_output=True, text=True, timeout=600
    )


def measure(server, tmp_path, *arguments, status=0):
    """What --json holds, after checks that hold for every run."""
    path = tmp_path / "bench.json"
    done = bench("--base-url", server.url, "--json", path, *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    document = json.loads(path.read_text())
    if "summary" in document:
        check_sums(document["summary"], document["requests"])
    return document


def check_sums(summary, requests):
    ok = [r for r in requests if r["status"] == "ok"]
    assert summary["num_requests"] == len(requests)
    assert (
        summary["num_requests"]
        == summary["num_ok"] + summary["num_failed"] + summary["num_refused"]
    )
    assert summary["num_ok"] == len(ok)
    assert summary["num_without_usage"] == 0
    for name in ("prompt_tokens", "output_tokens", "cached_tokens"):
        assert summary[name] == sum(r[name] for r in ok)
    duration_s = summary["duration_s"]
    total = summary["prompt_tokens"] + summary["output_tokens"]
    assert summary["requests_per_s"] * duration_s == pytest.approx(len(ok))
    assert summary["output_tokens_per_s"] * duration_s == pytest.approx(summary["output_tokens"])
    assert summary["total_tokens_per_s"] * duration_s == pytest.approx(total)
    for name in ("ttft_ms", "tpot_ms", "inter_chunk_ms", "e2e_ms"):
        if summary[name]:
            assert 0 <= summary[name]["p50"] <= summary[name]["p90"] <= summary[name]["p99"]
    assert all(0 < r["e2e_ms"] <= duration_s * 1000 for r in ok)
    assert summary["diffusion"] is None or summary["diffusion"]["forwards"] == sum(
        r["diffusion"]["forwards"] for r in ok
    )


def test_prefix_repetition_sends_exact_lengths(server, tmp_path):
    document = measure(
        server,
        tmp_path,
        "--num-prompts",
        5,
        "--warmup",
        1,
        *REPETITION,
        "--goodput",
        "ttft:60000",
        "e2el:60000",
    )
    summary = document["summary"]
    assert summary["num_ok"] == 5  # the warm-up doesn't count
    assert [r["prompt_tokens"] for r in document["requests"]] == [32] * 5
    assert [r["output_tokens"] for r in document["requests"]] == [8] * 5
    assert summary["goodput"]["share"] == 1
    for r in document["requests"]:
        assert 0 < r["ttft_ms"] <= r["e2e_ms"]
        assert r["tpot_ms"] == pytest.approx((r["e2e_ms"] - r["ttft_ms"]) / 7)


def test_same_seed_same_work_and_limits_nobody_meets(server, tmp_path):
    arguments = ["--num-prompts", 3, *REPETITION, "--no-stream", "--goodput", "e2el:0.001"]
    first, second = (measure(server, tmp_path, *arguments) for _ in range(2))
    assert first["settings"] == second["settings"]
    assert first["summary"]["diffusion"]["forwards"] == second["summary"]["diffusion"]["forwards"]
    assert first["summary"]["goodput"]["share"] == 0
    assert first["summary"]["ttft_ms"] is None and first["summary"]["tpot_ms"] is None


def test_generated_shared_prefix_at_a_rate_and_a_plot(server, tmp_path):
    plot = tmp_path / "bench.png"
    document = measure(
        server,
        tmp_path,
        *GROUPS,
        "--request-rate",
        20,
        "--burstiness",
        0.5,
        "--max-concurrency",
        2,
        "--plot",
        plot,
    )
    assert document["summary"]["num_ok"] == 4
    assert {r["prompt_tokens"] for r in document["requests"]} == {32}
    assert plot.read_bytes().startswith(b"\x89PNG")
    events = [(r["start_ms"], 1) for r in document["requests"]]
    events += [(r["start_ms"] + r["e2e_ms"], -1) for r in document["requests"]]
    running = 0
    for _, change in sorted(events):
        running += change
        assert running <= 2


def test_random_ids_and_text(server, tmp_path):
    ids = measure(server, tmp_path, *GROUPS, "--num-prompts", 2, "--vocab-size", 2048)
    assert {r["prompt_tokens"] for r in ids["requests"]} == {32}
    text = measure(server, tmp_path, *GROUPS, "--num-prompts", 2, "--endpoint", "chat")
    assert all(16 <= r["prompt_tokens"] <= 80 for r in text["requests"])


def test_jsonl_counts_right_answers(server, tmp_path):
    document = measure(
        server,
        tmp_path,
        "--workload",
        "jsonl",
        "--data",
        EVAL,
        "--num-prompts",
        6,
        "--max-concurrency",
        3,
    )
    accuracy = document["summary"]["accuracy"]
    assert accuracy["compared"] == 6
    assert accuracy["right"] >= 4  # the model card says .95
    assert accuracy["share"] == accuracy["right"] / 6


def test_refused_requests_are_no_failures(start_server, tmp_path):
    server = start_server("--max-queued", "1", "--max-running", "1")
    summary = measure(server, tmp_path, "--num-prompts", 12, *REPETITION)["summary"]
    assert summary["num_refused"] > 0 and summary["num_ok"] > 0 and summary["num_failed"] == 0
    assert "429" in summary["first_refusal"]


def test_a_failed_request_is_status_1_with_its_message(server, tmp_path):
    summary = measure(
        server,
        tmp_path,
        "--num-prompts",
        1,
        *REPETITION,
        "--extra-body",
        '{"algorithm": "none of them"}',
        status=1,
    )["summary"]
    assert summary["num_failed"] == 1
    assert "algorithm" in summary["first_error"]


def test_interrupted_it_prints_what_was_measured(server):
    process = subprocess.Popen(
        [
            sys.executable,
            BENCH,
            "--base-url",
            server.url,
            "--num-prompts",
            "1000",
            *REPETITION,
            "--max-concurrency",
            "1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A shell that puts the tests into the background has them ignore it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    finished = server.metric("bicached_forwards_total")
    while server.metric("bicached_forwards_total") < finished + 20 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "0 failed, 0 refused when interrupted" in output
    assert "Traceback" not in errors


def test_compare_cache_runs_both_sides_in_turn(server, tmp_path):
    document = measure(server, tmp_path, *GROUPS, "--compare-cache", "--rounds", 2)
    assert len(document["rounds"]) == 2
    for one in document["rounds"]:
        for side in ("off", "on"):
            assert one[side]["num_ok"] == 4
        assert one["off"]["cached_tokens"] == 0
        assert one["off"]["diffusion"]["cache_misses"] == 0
        assert one["on"]["diffusion"]["cache_hits"] + one["on"]["diffusion"]["cache_misses"] == 4
        speeds = one["compared"]["requests/s"]
        assert speeds["ratio"] == pytest.approx(
            one["on"]["requests_per_s"] / one["off"]["requests_per_s"]
        )
    ratios = [one["compared"]["requests/s"]["ratio"] for one in document["rounds"]]
    assert document["median"]["requests/s"]["ratio"] == pytest.approx(sum(ratios) / 2)
    assert document["total"]["on"]["num_ok"] == 8


def test_compare_cache_with_a_policy_that_reuses_all(server, tmp_path):
    # One at a time: what runs together can't take a prefix from each other.
    document = measure(
        server,
        tmp_path,
        *GROUPS,
        "--gsp-system-prompt-len",
        160,
        "--compare-cache",
        "--rounds",
        1,
        "--cache-policy",
        "full",
        "--max-concurrency",
        1,
    )
    total = document["total"]
    assert total["off"]["cached_tokens"] == 0
    assert total["on"]["diffusion"]["cache_hits"] >= 2  # the second prompt of each group
    assert total["on"]["cached_tokens"] >= 2 * 128
    assert total["on"]["diffusion"]["mean_depth_of_hits"] > 0


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--base-url", "http://127.0.0.1:1"], "no server answers at http://127.0.0.1:1"),
        (["--base-url", "nowhere"], "no server answers at nowhere"),
        (["--num-prompts", "0"], "--num-prompts: is '0'; must be a whole number of at least 1"),
        (["--goodput", "speed:3"], "ttft, tpot or e2el"),
        (["--goodput", "ttft:3", "--no-stream"], "needs streaming"),
        (["--extra-body", "[1]"], "must be a JSON object"),
        (["--workload", "jsonl"], "--data"),
        (["--cache-policy", "full"], "--compare-cache"),
        (["--nothing"], "--nothing"),
    ],
)
def test_a_bad_call_is_one_sentence(arguments, part):
    done = bench(*arguments)
    assert done.returncode == 2
    assert part in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""
