"""What a description of the API generates: values of every kind in every field, and the shapes of answers."""

import pytest

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
ASKED = [{"role": "user", "content": "hi"}]
BODIES = {CHAT: {"messages": ASKED, "max_tokens": 2}, TEXT: {"prompt": "The", "max_tokens": 2},
          RESPONSES: {"input": "hi", "max_output_tokens": 2}, MESSAGES: {"messages": ASKED, "max_tokens": 2}}
VALUES = [True, 0, -1, 1.5, 10**30, "", "x", "\u0000é🤗", [], [None], [[]], {}, {"x": None}]

SAMPLING = ["model", "n", "seed", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
            "presence_penalty", "repetition_penalty", "logit_bias", "stop_token_ids", "min_tokens", "bad_words",
            "allowed_token_ids", "ignore_eos", "user", "metadata", "store", "tools", "tool_choice", "response_format",
            "guided_json", "structured_outputs", "prompt_logprobs", "steps", "block_length", "algorithm", "threshold",
            "cache", "deterministic", "diffusion_stream"]
FIELDS = {
    CHAT: [*SAMPLING, "messages", "max_tokens", "max_completion_tokens", "stop", "logprobs", "top_logprobs", "functions",
           "function_call", "modalities", "audio", "prediction", "reasoning_effort", "service_tier", "web_search_options",
           "add_generation_prompt", "continue_final_message", "chat_template"],
    TEXT: [*SAMPLING, "prompt", "suffix", "max_tokens", "stop", "logprobs", "echo", "best_of"],
    RESPONSES: [*SAMPLING, "input", "instructions", "max_output_tokens", "text", "include", "truncation", "reasoning",
                "previous_response_id", "background", "top_logprobs", "conversation", "prompt"],
    MESSAGES: [*SAMPLING, "messages", "system", "max_tokens", "stop_sequences", "thinking", "output_config",
               "context_management", "mcp_servers"],
}


@pytest.mark.parametrize("path", FIELDS)
def test_a_value_of_any_kind_is_taken_or_refused_by_name(http, path):
    for name in FIELDS[path]:
        for value in VALUES:
            answer = http.post(path, {**BODIES[path], name: value})
            if answer.status_code == 200:
                continue
            assert answer.status_code in (400, 404), (name, value, answer.text)
            error = answer.json()["error"]
            assert error["param"].startswith(name) and name in error["message"], (name, value, error)


@pytest.mark.parametrize("path", FIELDS)
def test_null_is_as_good_as_absent(http, path):
    required = {"messages", "input"} & set(BODIES[path])
    nulls = {name: None for name in FIELDS[path] if name not in required}
    answer = http.post(path, {**nulls, **BODIES[path]})
    assert answer.status_code == 200, answer.text


COUNT, TEXT_OR_NULL = (int,), (str, type(None))
CHOICE = {"index": COUNT, "finish_reason": (str,), "logprobs": (dict, type(None))}
HEAD = {"id": (str,), "object": (str,), "created": COUNT, "model": (str,), "system_fingerprint": (str,), "choices": (list,)}
USAGE = {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT, "prompt_tokens_details": (dict,)}
TOKEN = {"token": (str,), "logprob": (float, int), "bytes": (list,)}


def check(value, shape):
    for name, kinds in shape.items():
        assert name in value, (name, value)
        assert isinstance(value[name], kinds) and not (bool not in kinds and isinstance(value[name], bool)), (name, value)


@pytest.mark.parametrize("n", [1, 3])
def test_the_shape_of_a_chat(http, n):
    body = http.post(CHAT, {"messages": ASKED, "max_tokens": 4, "logprobs": True, "top_logprobs": 2, "n": n}).json()
    check(body, {**HEAD, "usage": (dict,)})
    check(body["usage"], USAGE)
    assert [choice["index"] for choice in body["choices"]] == list(range(n))
    for choice in body["choices"]:
        check(choice, {**CHOICE, "message": (dict,)})
        check(choice["message"], {"role": (str,), "content": (str,), "refusal": TEXT_OR_NULL})
        for token in choice["logprobs"]["content"]:
            check(token, {**TOKEN, "top_logprobs": (list,)})
            for top in token["top_logprobs"]:
                check(top, TOKEN)


def test_the_shape_of_a_streamed_chat(http):
    events = [event for _, event in http.events(CHAT, {
        "messages": ASKED, "max_tokens": 4, "n": 2, "stream_options": {"include_usage": True}})]
    assert events.pop() == "[DONE]"
    *chunks, last = events
    assert last["choices"] == []
    check(last["usage"], USAGE)
    assert {chunk["id"] for chunk in events} == {last["id"]}
    for chunk in chunks:
        check(chunk, HEAD)
        assert chunk["object"] == "chat.completion.chunk" and chunk["usage"] is None
        for choice in chunk["choices"]:
            check(choice, {"index": COUNT, "delta": (dict,), "finish_reason": TEXT_OR_NULL})


@pytest.mark.parametrize("logprobs", [0, 2])
def test_the_shape_of_a_text(http, logprobs):
    body = http.post(TEXT, {"prompt": ["The", "A"], "max_tokens": 4, "logprobs": logprobs}).json()
    check(body, {**HEAD, "usage": (dict,)})
    for choice in body["choices"]:
        check(choice, {**CHOICE, "text": (str,)})
        lists = choice["logprobs"]
        check(lists, dict.fromkeys(("text_offset", "token_logprobs", "tokens", "top_logprobs"), (list,)))
        assert len({len(one) for one in lists.values()}) == 1
        assert all(isinstance(top, dict) for top in lists["top_logprobs"])


def test_the_shape_of_models(http):
    body = http.get("/v1/models").json()
    check(body, {"object": (str,), "data": (list,)})
    for model in body["data"]:
        check(model, {"id": (str,), "object": (str,), "created": COUNT, "owned_by": (str,)})
        assert http.get("/v1/models/" + model["id"]).json() == model
