"""Anthropic's form: /v1/messages, plain and streamed."""

import pytest

MESSAGES = "/v1/messages"
ASKED = {"role": "user", "content": "Count in steps of 4 from 25, 5 numbers."}


def ask(http, **fields):
    return http.post(MESSAGES, {"model": "demo", "max_tokens": 64, "messages": [ASKED], **fields},
                     x_api_key="none", anthropic_version="2023-06-01")


def test_a_message(http, shop):
    answer = ask(http, system=shop["system"], messages=shop["messages"][1:]).json()
    assert answer["content"] == [{"type": "text", "text": shop["answer"]}]
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", "demo")
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert answer["id"].startswith("msg_")
    assert answer["usage"]["input_tokens"] > 20 and answer["usage"]["output_tokens"] > 2


def test_a_streamed_message(http, shop):
    body = {"model": "demo", "max_tokens": 64, "system": shop["system"], "messages": shop["messages"][1:]}
    events = http.events(MESSAGES, body)
    names = [name for name, _ in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert all(name == body["type"] for name, body in events)
    deltas = [body["delta"] for name, body in events if name == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == shop["answer"]
    start, end = events[0][1]["message"], events[-2][1]
    assert start["content"] == [] and start["stop_reason"] is None and start["usage"]["input_tokens"] > 20
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == ask(http, **body).json()["usage"]["output_tokens"]


def test_why_a_message_ended(http):
    cut = ask(http, max_tokens=3).json()
    assert (cut["stop_reason"], cut["usage"]["output_tokens"]) == ("max_tokens", 3)
    stopped = ask(http, stop_sequences=["33", "never"]).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "33")
    assert stopped["content"][0]["text"] == "25, 29, "


def test_an_assistants_turn_at_the_end_is_gone_on_with(http):
    answer = ask(http, messages=[ASKED, {"role": "assistant", "content": "25, 29, 33,"}]).json()
    assert answer["content"][0]["text"].strip().startswith("37, 41")


TOOL = {"name": "clock", "description": "What time it is.", "input_schema": {"type": "object", "properties": {}}}


@pytest.mark.parametrize("fields", [
    {"tools": [TOOL], "tool_choice": {"type": "auto"}, "metadata": {"user_id": "u"}},
    {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
    {"temperature": 0.5, "top_p": 0.9, "top_k": 20},
    {"max_tokens": 0},  # fills the cache
    {"thinking": {"type": "disabled"}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"thinking": {"type": "adaptive"}},
    {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
    {"messages": [ASKED,
                  {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"},
                                                    {"type": "text", "text": "I ask."},
                                                    {"type": "tool_use", "id": "t1", "name": "clock", "input": {}}]},
                  {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "noon"},
                                               {"type": "text", "text": "Go on."}]}]},
    {"messages": [ASKED, {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "clock", "input": {}}]},
                  {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "is_error": True,
                                                "content": [{"type": "text", "text": "no clock"}]}]}]},
], ids=str)
def test_agents_are_answered(http, fields):
    answer = ask(http, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["content"][0]["type"] == "text"


@pytest.mark.parametrize("fields, param", [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
    ({"max_tokens": -2}, "max_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"tool_choice": {"type": "any"}, "tools": [TOOL]}, "tool_choice"),
    ({"tool_choice": {"type": "tool", "name": "clock"}, "tools": [TOOL]}, "tool_choice"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "deep"}}, "thinking.type"),
    ({"thinking": "please"}, "thinking"),
    ({"output_format": {"type": "json_schema", "schema": {}}}, "output_format"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
], ids=str)
def test_what_can_not_be_done_is_refused_in_their_form(http, fields, param):
    answer = ask(http, **fields)
    assert answer.status_code == 400, answer.text
    body = answer.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert param in body["error"]["message"] and body["error"]["param"] == param


def test_tokens_are_counted_as_they_are_generated_from(http):
    counted = http.post(MESSAGES + "/count_tokens", {"model": "demo", "messages": [ASKED]}).json()
    usage = ask(http).json()["usage"]
    assert counted["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
