"""bicached-lab profile and pinned system prompts, as a user meets them."""

import json
import signal
import subprocess
import urllib.request

import pytest
from programs import DEMO, ENVIRONMENT, LAB, PRICES, fails, run, run_server

EVAL = DEMO / "eval" / "eval.jsonl"


def lines_of(path, count):
    with open(path) as file:
        found = [line for line in file if json.loads(line)["messages"][0]["role"] == "system"]
    return found[:count]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(lines_of(EVAL, 12)))
    return path


def profile(data, out, *more):
    done = run("profile", DEMO, "--data", data, "--out", out, *more, program=LAB)
    assert done.returncode == 0, done
    return done, json.loads(out.read_text())


@pytest.mark.parametrize("arguments, expected", [
    ([], "--data"),
    (["--data", EVAL, "--by", "luck"], "similarity or decisions"),
    (["--data", EVAL, "--threshold", "2"], "0.9999"),
    (["--data", EVAL, "--threshold", "high"], "'high'"),
    (["--data", EVAL, "--by", "decisions", "--threshold", "0.9"], "--threshold is of --by similarity"),
    (["--data", EVAL, "--by", "decisions", "--with-masks", "0"], "--with-masks is of --by similarity"),
    (["--data", EVAL, "--limit", "0"], "--limit"),
    (["--data", EVAL, "--with-masks", "-1"], "--with-masks"),
    (["--data", EVAL, "--by", "decisions"], "--state-dir"),
    (["--data", "no/such/file"], "no/such/file"),
    (["--data", EVAL, "--out", EVAL / "table.json"], "--out"),
    (["--data", EVAL, "--min-uses", "2"], "--min-uses"),
])
def test_mistakes(tmp_path, arguments, expected):
    if "--out" not in arguments:
        arguments = [*arguments, "--out", tmp_path / "out.json"]
    assert expected in fails("profile", DEMO, *arguments, program=LAB)


def test_a_bad_line_is_named(tmp_path, data):
    data.write_text(data.read_text() + '{"messages": 7}\n')
    message = fails("profile", DEMO, "--data", data, "--out", tmp_path / "out.json", program=LAB)
    assert f"{data}:13" in message and "messages" in message


def test_similarity_makes_a_table_that_serves(tmp_path, data):
    out = tmp_path / "depth" / "demo.json"
    done, table = profile(data, out)
    assert table["num_layers"] == 12 and table["threshold"] == 0.97
    assert sum(ratio["conversations"] for ratio in table["similarity"]) == 12
    ratios = [ratio["ratio_percent"] for ratio in table["similarity"]]
    assert ratios == sorted(set(ratios))
    for ratio in table["similarity"]:
        assert len(ratio["layers"]) == 12 and ratio["layers"][0] == pytest.approx(1, abs=1e-5)
    depths = [step["depth"] for step in table["steps"]]
    assert depths and depths == sorted(set(depths))
    assert str(out) in done.stdout
    assert sorted(path.name for path in out.parent.iterdir()) == ["demo.json"]
    answer = run("generate", DEMO, "--cache-policy", "table", "--depth-table", out, "--system", PRICES[0]["content"],
                 "--chat", PRICES[1]["content"])
    assert answer.stdout == "The blue lamp costs 19 coins.\n", answer


def test_masks_make_the_ratio_that_of_the_served_canvas(tmp_path, data):
    _, without = profile(data, tmp_path / "a.json")
    _, masked = profile(data, tmp_path / "b.json", "--with-masks", "128")
    assert masked["similarity"][-1]["ratio_percent"] < without["similarity"][0]["ratio_percent"]
    assert "128 masks" in masked["measure"]


def test_a_stopped_run_goes_on_where_it_was(tmp_path, data):
    # In bfloat16, which processors made for it get by default, the last digits would depend on what
    # runs in the same forward.
    out = tmp_path / "a.json"
    _, whole = profile(data, out, "--dtype", "float32")
    stopped = tmp_path / "b.json"
    # Small forwards, so that there is something to stop between.
    small = ["--max-rows-per-forward", "64", "--dtype", "float32"]
    command = [LAB, "profile", DEMO, "--data", data, "--out", stopped, *small]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    for line in process.stderr:
        if "profile: 0 of" not in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    partial = tmp_path / "b.json.partial"
    assert partial.exists() and not stopped.exists()
    done, resumed = profile(data, stopped, *small)
    assert "profile: 0 of" not in done.stderr
    assert not partial.exists()
    assert resumed["steps"] == whole["steps"]
    for mine, other in zip(resumed["similarity"], whole["similarity"], strict=True):
        assert mine["ratio_percent"] == other["ratio_percent"]
        assert mine["layers"] == pytest.approx(other["layers"], abs=1e-5)


def test_decisions_probe_every_conversation_and_fill_the_state(tmp_path, data):
    state = tmp_path / "state"
    out = tmp_path / "probes.json"
    done, found = profile(data, out, "--by", "decisions", "--state-dir", state)
    # A plan that left nothing out in a short answer has found nothing out.
    assert 4 <= found["probes"] <= 12
    assert f"{found['probes']} probes" in done.stdout and "depth" in done.stdout
    def probed(kind):
        return sum(plan["agreed"] + plan["differed"] for plan in kind["plans"])

    for kind in found["kinds"]:
        depths = [plan["depth"] for plan in kind["plans"] if "depth" in plan]
        assert depths == sorted(depths) and depths[-1] == 12
        assert all(0 < plan["estimated_disagreement"] < 1 for plan in kind["plans"])
    assert sum(map(probed, found["kinds"])) == found["probes"]
    assert list(state.iterdir())
    _, more = profile(data, out, "--by", "decisions", "--state-dir", state, "--limit", "3")
    assert sum(map(probed, more["kinds"])) == found["probes"] + more["probes"]


def test_a_pinned_system_prompt_is_there_before_the_first_request(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"pinned_prefixes": [PRICES[0]["content"]], "cache_policy": "fixed",
                                  "cache_depth": 4}))
    server, (url_line, _) = run_server("--port", "0", "--config", str(config))
    try:
        url = url_line.split(" at ")[1].strip()

        def ask():
            body = json.dumps({"messages": PRICES}).encode()
            return json.load(urllib.request.urlopen(url + "/v1/chat/completions", body, timeout=600))

        ask()
        second = ask()
        assert second["diffusion"]["cache"] == "hit" and second["diffusion"]["depth"] == 4
        assert second["choices"][0]["message"]["content"] == "The blue lamp costs 19 coins."
        [entry] = json.load(urllib.request.urlopen(url + "/v1/cache", timeout=600))["entries"]
        assert entry["pinned"] and entry["tokens"] == second["usage"]["prompt_tokens_details"]["cached_tokens"]
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_a_pinned_prefix_that_does_not_fit_is_refused(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"pinned_prefixes": [PRICES[0]["content"], "long " * 2000]}))
    assert "pinned_prefixes[1]" in fails("serve", "--model", DEMO, "--port", "0", "--config", config)
