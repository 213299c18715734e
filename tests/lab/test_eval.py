"""bicached-lab eval: the real program on the demonstration model's questions, and on files that are wrong."""

import json

import pytest

from programs import DEMO, LAB, fails, run

DATA = DEMO / "eval" / "eval.jsonl"
QUESTION = {"messages": [{"role": "user", "content": "60 + 10"}], "answer": "60 plus 10 is 70."}


def evaluate(tmp_path, *arguments, data=DATA, status=0):
    results = tmp_path / "results.json"
    done = run("eval", DEMO, "--data", data, "--json", results, *arguments, program=LAB)
    assert done.returncode == status, done.stderr
    return done, json.loads(results.read_text())


def write(tmp_path, *lines):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_policies_side_by_side(tmp_path):
    done, told = evaluate(tmp_path, "--limit", 12, "--policies", "off,fixed:0,fixed:2,full,measured", "--by-family")
    assert (told["model"], told["reference"]) == ("demo", "off")
    assert told["settings"]["limit"] == 12
    assert told["settings"]["algorithm"] == "threshold"
    runs = {run_["policy"]: run_ for run_ in told["runs"]}
    assert list(runs) == ["off", "fixed:0", "fixed:2", "full", "measured"]
    for policy, run_ in runs.items():
        assert (run_["num"], run_["failed"]) == (12, 0)
        for name in ("accuracy", "agreement", "hit_rate"):
            assert 0 <= run_[name] <= 1
        assert run_["difference_low"] <= run_["difference"] <= run_["difference_high"]
        for name in ("requests_per_s", "output_tokens_per_s", "forwards", "row_layers", "ttft_ms_p50", "wall_s"):
            assert run_[name] > 0
        assert run_["ttft_ms_p50"] <= run_["ttft_ms_p99"]
        assert run_["requests_per_s"] == pytest.approx(12 / run_["wall_s"])
        assert sum(family["num"] for family in run_["families"].values()) == 12
        assert policy in done.stdout
    off = runs["off"]
    assert off["accuracy"] >= 0.75
    assert (off["agreement"], off["difference"], off["mean_depth"], off["hit_rate"]) == (1, 0, 0, 0)
    assert runs["fixed:2"]["mean_depth"] <= 2
    for family in off["families"]:
        assert f"\n{family} " in done.stdout


def test_off_against_itself_agrees_whatever_the_concurrency(tmp_path):
    _, told = evaluate(tmp_path, "--limit", 12, "--policies", "off,off", "--rounds", 2, "--warmup", 0, "--concurrency", 3)
    first, second = told["runs"]
    assert second["agreement"] == 1
    assert first["row_layers"] == second["row_layers"]
    assert first["accuracy"] == second["accuracy"]
    # Twelve questions without a difference don't prove that there is none: the interval has a width, around 0.
    assert second["difference_low"] == pytest.approx(-second["difference_high"])
    assert 0 < second["difference_high"] < 0.2


def test_without_off_the_first_run_is_the_reference(tmp_path):
    done, told = evaluate(tmp_path, "--limit", 2, "--policies", "intra", "--warmup", 0)
    assert told["reference"] == "intra"
    assert "first run, intra" in done.stdout


def test_families_and_lengths_are_chosen(tmp_path):
    _, told = evaluate(tmp_path, "--families", "sums,long", "--without-families", "long", "--limit", 3, "--policies", "off")
    assert list(told["runs"][0]["families"]) == ["sums"]
    # Two tokens are too few for any answer.
    _, told = evaluate(tmp_path, "--families", "sums", "--limit", 3, "--policies", "off", "--gen-length", 2)
    assert told["runs"][0]["accuracy"] == 0
    assert told["settings"]["gen_length"] == 2


def test_steps_hold_for_every_request(tmp_path):
    one_step = ("--algorithm", "low_confidence", "--block-length", 64, "--steps", 1, "--limit", 4, "--families", "sums",
                "--policies", "off", "--concurrency", 1)
    _, told = evaluate(tmp_path, *one_step)
    assert told["runs"][0]["forwards"] == 4


def test_failed_requests_are_wrong_and_end_with_status_1(tmp_path):
    # Room for about 120 tokens of keys and values: enough for sums, not for a long answer.
    done, told = evaluate(tmp_path, "--families", "sums,long", "--limit", 5, "--policies", "off", "--kv-cache-bytes", 3000000,
                          "--dtype", "float32", "--warmup", 0, status=1)
    run_ = told["runs"][0]
    assert run_["failed"] == run_["families"]["long"]["num"] > 0
    assert run_["families"]["long"]["accuracy"] == 0
    assert run_["families"]["sums"]["accuracy"] > 0
    assert "eval.jsonl:1 failed: " in done.stderr


def test_answers_without_white_space_at_the_ends_are_compared(tmp_path):
    data = write(tmp_path, {**QUESTION, "answer": " 60 plus 10 is 70.\n"}, "", {**QUESTION, "answer": "60 plus 10 is 71."})
    _, told = evaluate(tmp_path, "--policies", "off", data=data)
    assert told["runs"][0]["accuracy"] == 0.5
    assert list(told["runs"][0]["families"]) == ["(none)"]


@pytest.mark.parametrize("line, expected", [
    ("{", "not valid JSON"),
    ("[1]", "an object"),
    ({"answer": "a"}, "messages is missing"),
    ({"messages": [], "answer": "a"}, "messages has 0 entries"),
    ({"messages": [{"role": "user", "content": "a"}]}, "answer is missing"),
    ({**QUESTION, "answer": 70}, "answer must be a string"),
    ({**QUESTION, "gen_length": 0}, "gen_length is 0"),
    ({**QUESTION, "gen_length": 1024}, "gen_length: the prompt has"),
    ({**QUESTION, "messages": [{"role": "user", "content": "a b " * 2000}]}, "messages: the prompt has"),
])
def test_bad_lines_are_named(tmp_path, line, expected):
    message = fails("eval", DEMO, "--data", write(tmp_path, QUESTION, "  ", line), program=LAB)
    assert "questions.jsonl:3: " in message
    assert expected in message


@pytest.mark.parametrize("arguments, expected", [
    ([], "--data"),
    (["--data", "no/such/file"], "no/such/file"),
    (["--data", DATA, "--policies", "best"], "off, fixed:N"),
    (["--data", DATA, "--policies", "fixed:13"], "0 to 12"),
    (["--data", DATA, "--policies", "off,table"], "--depth-table"),
    (["--data", DATA, "--families", "smus"], "mean sums?"),
    (["--data", DATA, "--concurrency", "0"], "--concurrency"),
    (["--data", DATA, "--steps", "0"], "steps"),
    (["--data", DATA, "--algorithm", "best"], "low_confidence"),
    (["--data", DATA, "--json", "no/such/folder/file.json"], "can't be written"),
    (["--data", DATA, "--cache-policy", "off"], "--cache-policy"),
])
def test_mistakes_end_with_status_2_and_say_what_is_wrong(arguments, expected):
    assert expected in fails("eval", DEMO, *arguments, program=LAB)


def test_an_empty_file_is_refused(tmp_path):
    assert "has no questions" in fails("eval", DEMO, "--data", write(tmp_path, " "), program=LAB)


def test_measured_starts_from_a_state_dir_and_leaves_it(tmp_path):
    state = tmp_path / "state"
    with open(DATA) as file:
        orders = [line for line in file if json.loads(line)["family"] == "record"]
    lines = [line for line in orders if json.loads(line)["group"] == json.loads(orders[0])["group"]]
    # Ten plans take turns, and at this limit each needs four probes of this prefix.
    limit = ["--max-disagreement", 0.1]
    data = write(tmp_path, *(lines * 50)[:48])
    profiled = run("profile", DEMO, "--by", "decisions", "--data", data, "--state-dir", state,
                   "--out", tmp_path / "probes.json", program=LAB)
    assert profiled.returncode == 0, profiled.stderr
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    others = write(tmp_path, *lines)
    measured = ["--policies", "measured", "--min-uses", 1, *limit]
    _, cold = evaluate(tmp_path, *measured, data=others)
    _, warm = evaluate(tmp_path, *measured, "--state-dir", state, data=others)
    assert cold["runs"][0]["mean_depth"] == 0
    assert warm["runs"][0]["mean_depth"] > 6
    assert warm["runs"][0]["row_layers"] < cold["runs"][0]["row_layers"]
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


def test_a_state_dir_without_statistics_is_refused(tmp_path):
    message = fails("eval", DEMO, "--data", DATA, "--policies", "measured", "--state-dir", tmp_path, program=LAB)
    assert "state_dir" in message and str(tmp_path) in message
    assert list(tmp_path.iterdir()) == []
