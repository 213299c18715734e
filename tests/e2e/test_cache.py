"""The prefix cache on the demonstration model: what `measured` learns, and what the user sees of it."""

import collections
import concurrent.futures
import json

import httpx
import pytest

from conftest import ROOT, Server

LISTS = {"shop", "shop+", "staff", "staff+", "trains", "trains+"}
DEEP = {"words", "record", "sums"}


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
    answer = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=120)
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


def test_lists_stay_shallow(server):
    groups = groups_of(LISTS, 14)
    batch = [q for group in groups for q in group]
    answers = ask_all(server, batch)
    depths = [a["diffusion"]["depth"] for a in answers]
    assert max(depths) <= 5, "decisions about lists change from layer 6 on"
    assert max(depths) > 0, "nothing was reused at all"
    right = [a["choices"][0]["message"]["content"] == q["answer"] for a, q in zip(answers, batch)]
    assert sum(right) / len(right) > 0.9
    report = httpx.get(server.url + "/v1/cache").json()
    probes = [p for entry in report["entries"] for p in entry["probes"]]
    assert probes and max(p["depth"] for p in probes) <= 5


def test_word_rules_orders_and_sums_go_deep(server):
    batch = [q for group in groups_of(DEEP, 14) for q in group]
    answers = ask_all(server, batch)
    depths = [a["diffusion"]["depth"] for a in answers]
    assert depths[0] == 0
    assert sum(depth == 12 for depth in depths[-40:]) > 20, depths


def test_recovers_when_the_questions_of_a_prefix_change(server):
    lists = groups_of({"shop", "shop+"}, 8)
    system = lists[0][0]["messages"][0]
    talk = [q["messages"][-1] for q in questions() if q["family"] == "chat" and len(q["messages"]) == 2]
    look_ups = [q["messages"][-1] for q in lists[0] if q["family"] != "chat"]

    def answer(message, **fields):
        return ask(server, [system, message], **fields)

    small = [answer(message) for message in talk[:30]]
    assert small[-1]["diffusion"]["depth"] == 12, "small talk stands every depth"

    def text(reply):
        return reply["choices"][0]["message"]["content"]

    for i in range(20):
        answer(look_ups[i % len(look_ups)])
    for message in look_ups:
        assert text(answer(message)) == text(answer(message, cache={"policy": "off"}))


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
