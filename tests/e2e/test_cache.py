"""The prefix cache on the demonstration model: what `measured` learns, and what the user sees of it."""

import collections
import concurrent.futures
import json

import httpx
import pytest

from programs import ROOT, Server


def questions():
    lines = (ROOT / "models" / "demo" / "eval" / "eval.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def groups_of(families, count):
    """Questions with a system prompt, by prefix, of prefixes that have only these families (and small talk)."""
    groups = collections.defaultdict(list)
    for question in questions():
        groups[question["group"]].append(question)
    chosen = []
    for group in groups.values():
        kinds = {q["family"] for q in group}
        if kinds & families and kinds <= families | {"chat"} and group[0]["messages"][0]["role"] == "system":
            chosen.append([q for q in group if q["family"] != "long"])
    assert len(chosen) >= count
    return chosen[:count]


def ask(server, messages, **fields):
    body = {"messages": messages, "max_tokens": 64, **fields}
    answer = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=600)
    answer.raise_for_status()
    return answer.json()


def ask_all(server, batch):
    """Eight at a time, as the clients of a busy server."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda q: ask(server, q["messages"]), batch))


@pytest.fixture
def server():
    running = Server()
    yield running
    running.terminate()


@pytest.fixture
def learner():
    """A server that may spend as much on probes as on answers, so that what it learns is seen soon."""
    running = Server("--probe-budget", "1")
    yield running
    running.terminate()


def text(answer):
    return answer["choices"][0]["message"]["content"]


def test_a_prefix_goes_as_deep_as_its_own_probes_agree(learner):
    """Sums stand every depth, price lists do not; and what sums found is nothing to the lists."""
    (sums,), (lists,) = groups_of({"sums"}, 1), groups_of({"shop", "shop+"}, 1)
    sums, lists = ([q for q in group if q["family"] != "chat"] for group in (sums, lists))
    depths = [a["diffusion"]["depth"] for a in ask_all(learner, sums * 10)]
    assert depths[0] == 0 and max(depths) == 12
    first = [ask(learner, q["messages"]) for q in lists]
    assert {a["diffusion"]["depth"] for a in first} == {0}
    later = ask_all(learner, lists * 12)
    assert max(a["diffusion"]["depth"] for a in later) <= 6
    right = [text(a) == q["answer"] for a, q in zip(later, lists * 12)]
    without = [text(ask(learner, q["messages"], deterministic=True)) == q["answer"] for q in lists]
    assert sum(right) / len(right) >= sum(without) / len(without) - 0.05


def test_questions_that_change_are_noticed(learner):
    (lists,) = groups_of({"shop", "shop+"}, 1)
    system = lists[0]["messages"][0]
    talk = [q["messages"][-1] for q in questions() if q["family"] == "chat" and len(q["messages"]) == 2]
    look_ups = [q for q in lists if q["family"] != "chat"]
    for message in talk[:60]:
        answer = ask(learner, [system, message])
    for _ in range(40 // len(look_ups) + 1):
        for question in look_ups:
            ask(learner, question["messages"])
    for question in look_ups:
        answer = ask(learner, question["messages"])
        assert text(answer) == text(ask(learner, question["messages"], deterministic=True)), answer["diffusion"]


def test_another_applications_traffic_makes_nothing_deep(server):
    """60 requests of one application, then a new one: with its own evidence missing, nothing is reused."""
    (sums,), (lists,) = groups_of({"sums"}, 1), groups_of({"shop", "shop+"}, 1)
    ask_all(server, sums * 6)
    for answer in ask_all(server, [q for q in lists if q["family"] != "chat"] * 2):
        assert answer["diffusion"]["depth"] == 0


def test_what_the_user_sees(server):
    group = groups_of({"shop", "shop+"}, 1)[0]
    fields = {"cache": {"policy": "full"}}
    first, second = (ask(server, q["messages"], **fields) for q in group[:2])
    assert first["diffusion"]["cache"] == "miss"
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["diffusion"]["cache"] == "hit"
    assert second["diffusion"]["depth"] == 12
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == second["diffusion"]["prefix_len"] > 100
    report = httpx.get(server.url + "/v1/cache").json()
    (entry,) = report["entries"]
    assert entry["tokens"] == cached and entry["hits"] == 1 and entry["bytes"] == report["bytes"]
    assert server.metric("bicached_cache_hits_total") == 1
    assert server.metric("bicached_cache_bytes") == report["bytes"]
    assert any("stored" in line for line in server.lines), "one log line an entry"
    assert httpx.delete(server.url + "/v1/cache").json() == {"dropped": 1}
    assert httpx.get(server.url + "/v1/cache").json()["entries"] == []


def test_salts_share_nothing(server):
    group = groups_of({"shop", "shop+"}, 1)[0]
    for salt in ("a", "a", "b", "b"):
        ask(server, group[0]["messages"], cache={"policy": "full", "salt": salt})
    entries = httpx.get(server.url + "/v1/cache").json()["entries"]
    salts = {entry["salt"] for entry in entries}
    assert len(salts) == len(entries) == 2 and not salts & {"a", "b", ""}
    assert len({entry["id"] for entry in entries}) == 2
