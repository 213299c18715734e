"""Requests in the form in which chat pages, editors, agents and libraries send them."""

import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = {"role": "user", "content": "Count in steps of 4 from 25, 5 numbers."}
CLOCK = {"type": "function", "function": {
    "name": "clock", "description": "What time it is.",
    "parameters": {"type": "object", "properties": {}, "required": []}}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]}
TOLD = {"role": "tool", "tool_call_id": "call_1", "content": "noon"}
SCHEMA = {"type": "object", "properties": {"price": {"type": "integer"}}}


def said(text):
    return {"role": "assistant", "content": text}


# Of chats: what a client sends beside model and messages.
ANSWERED = {
    "Open WebUI, its built-in tools": {"stream": True, "stream_options": {"include_usage": True}, "tools": [CLOCK]},
    "Open WebUI, all sliders": {
        "stream": True, "temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 16, "seed": 0,
        "frequency_penalty": 0.4, "presence_penalty": 0.3, "repeat_penalty": 1.1, "stop": ["</s>"],
        "logit_bias": {"5": -100}, "reasoning_effort": "medium"},
    "Open WebUI, a title": {"max_tokens": 1000, "stream": False, "metadata": {"task": "title"}},
    "Open WebUI, who asks": {"user": {"name": "A", "id": "1", "role": "user"}},
    "Continue, its context length": {"stream": True, "max_tokens": 4096},
    "Jan": {"stream": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repeat_penalty": 1.12,
            "max_output_tokens": 2048},
    "LibreChat": {"stream": True, "stream_options": {"include_usage": True}, "temperature": 1, "top_p": 1,
                  "presence_penalty": 0, "frequency_penalty": 0, "n": 1, "user": "65f0", "tools": []},
    "LM Studio: no limit": {"max_tokens": -1, "seed": -1},
    "LangChain and the AI SDK: tools by choice": {"tools": [CLOCK], "tool_choice": "auto", "parallel_tool_calls": True},
    "agents that were told to call nothing": {"tools": [CLOCK], "tool_choice": "none"},
    "OpenAI's allowed tools": {"tools": [CLOCK], "tool_choice": {
        "type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CLOCK]}}},
    "functions, as tools once were": {"functions": [CLOCK["function"]], "function_call": "auto"},
    "LiteLLM: options of a stream without one": {"stream_options": {"include_usage": True}},
    "LiteLLM: options that say nothing": {"stream_options": {}},
    "JavaScript: whole numbers as floats": {"max_tokens": 16.0, "n": 1.0, "seed": 3.0, "top_k": 20.0},
    "PHP: nulls for what is not set": {
        "stream": None, "n": None, "stop": None, "logit_bias": None, "tools": None, "user": None, "max_tokens": None,
        "response_format": None, "seed": None, "temperature": None},
    "vLLM's word for off": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "vLLM's sampling": {"min_tokens": 2, "stop_token_ids": [5], "repetition_penalty": 1.1, "min_p": 0.02,
                        "bad_words": ["xyz"], "max_tokens": 8},
    "the most probable token": {"top_p": 0},
    "agents' stop strings": {"stop": [f"stop {i}" for i in range(32)]},
    "an empty stop string among others": {"stop": ["", "###"]},
    "OpenAI's newer names": {"max_completion_tokens": 16, "store": False, "service_tier": "auto",
                             "prompt_cache_key": "k", "safety_identifier": "s", "verbosity": "low"},
    "OpenAI: output as text": {"response_format": {"type": "text"}, "modalities": ["text"],
                               "audio": {"voice": "alloy", "format": "wav"}},
    "OpenAI: a prediction": {"prediction": {"type": "content", "content": "25, 29"}},
    "OpenAI: biases that say nothing": {"logit_bias": {"of a word": 0}},
    "nothing to generate": {"max_tokens": 0},
    "a page where no model was chosen": {"model": ""},
}


@pytest.mark.parametrize("form", ANSWERED, ids=str)
def test_a_chat_is_answered(http, form):
    fields = ANSWERED[form]
    if fields.get("stream"):
        events = http.events(CHAT, {"model": "demo", "messages": [ASKED], **fields})
        assert events[-1] == (None, "[DONE]")
        assert events[0][1]["choices"][0]["delta"]["role"] == "assistant"
        return
    answer = http.post(CHAT, {"model": "demo", "messages": [ASKED], **fields})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["role"] == "assistant"


HISTORIES = {
    "an answer that was aborted": [ASKED, said(None), ASKED],
    "an answer without a content": [ASKED, {"role": "assistant"}, ASKED],
    "empty answers": [ASKED, said(""), ASKED, said([]), ASKED],
    "an answer put back as it came": [ASKED, {**said("25, 29"), "refusal": None, "tool_calls": None, "audio": None,
                                             "function_call": None, "annotations": []}, ASKED],
    "a refusal": [ASKED, said([{"type": "refusal", "refusal": "no"}]), ASKED],
    "what a model thought": [ASKED, {**said("25"), "reasoning_content": "by four"}, ASKED],
    "a call and its result": [ASKED, CALLED, TOLD],
    "a call of the old form": [ASKED, {"role": "assistant", "content": None, "function_call": {
        "name": "clock", "arguments": "{}"}}, {"role": "function", "name": "clock", "content": "noon"}],
    "arguments as an object": [ASKED, {**CALLED, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}]}, TOLD],
    "results one after the other": [ASKED, CALLED, TOLD, {**TOLD, "content": "one"}, ASKED],
    "an assistant's turn at the end": [ASKED, said("25, 29,")],
    "Claude-like cache marks": [{"role": "system", "content": [
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]}, ASKED],
    "a developer's message": [{"role": "developer", "content": "Be brief."}, ASKED],
    "a system message alone": [{"role": "system", "content": "Be brief."}],
    "a system message in the middle": [ASKED, {"role": "system", "content": "Be brief."}, ASKED],
    "a name": [{**ASKED, "name": "bob"}],
    "nothing said": [{"role": "user", "content": ""}],
}


@pytest.mark.parametrize("history", HISTORIES, ids=str)
def test_a_history_is_read(http, history):
    answer = http.post(CHAT, {"model": "demo", "messages": HISTORIES[history], "tools": [CLOCK], "max_tokens": 8})
    assert answer.status_code == 200, answer.text


REFUSED = {
    "a call that is demanded": ({"tools": [CLOCK], "tool_choice": "required"}, "tool_choice"),
    "a call by name": ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "clock"}}},
                       "tool_choice"),
    "JSON": ({"response_format": {"type": "json_object"}}, "response_format"),
    "JSON of a schema": ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
                         "response_format"),
    "vLLM's guides": ({"guided_json": SCHEMA}, "guided_json"),
    "vLLM's empty guide": ({"guided_json": {}}, "guided_json"),
    "vLLM's choices": ({"guided_choice": ["a", "b"]}, "guided_choice"),
    "vLLM's regular expression": ({"guided_regex": "a+"}, "guided_regex"),
    "vLLM's newer guides": ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs"),
    "llama.cpp's grammar": ({"grammar": 'root ::= "a"'}, "grammar"),
    "llama.cpp's schema": ({"json_schema": SCHEMA}, "json_schema"),
    "SGLang's regular expression": ({"regex": "a+"}, "regex"),
    "SGLang's grammar": ({"ebnf": 'root ::= "a"'}, "ebnf"),
    "vLLM's log-probabilities of the prompt": ({"prompt_logprobs": 1}, "prompt_logprobs"),
    "a template of the client": ({"chat_template": "{{ messages }}"}, "chat_template"),
    "speech": ({"modalities": ["text", "audio"]}, "modalities"),
    "a turn to go on with, and a new one": ({"continue_final_message": True, "add_generation_prompt": True},
                                            "continue_final_message"),
    "more choices than there are": ({"n": 1000}, "n"),
    "a number that is none": ({"temperature": "hot"}, "temperature"),
    "a number out of range": ({"temperature": 3}, "temperature"),
    "a part of a token": ({"max_tokens": 1.5}, "max_tokens"),
    "a bias of a word": ({"logit_bias": {"the": -1}}, "logit_bias"),
    "no token to choose": ({"allowed_token_ids": []}, "allowed_token_ids"),
}


@pytest.mark.parametrize("form", REFUSED, ids=str)
def test_what_can_not_be_done_is_refused_by_name(http, form):
    fields, param = REFUSED[form]
    answer = http.post(CHAT, {"model": "demo", "messages": [ASKED], **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and param in error["message"]
    assert error["type"] == "invalid_request_error"


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.mark.parametrize("messages, param", [
    (None, "messages"),
    ([], "messages"),
    ("hello", "messages"),
    ([123], "messages[0]"),
    ([{}], "messages[0].role"),
    ([{"role": "robot", "content": "x"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([ASKED, {"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}], "messages[1].content[1]"),
], ids=str)
def test_messages_that_are_none_are_named(http, messages, param):
    answer = http.post(CHAT, {"model": "demo", "messages": messages})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


TEXTS = {
    "a prompt": {"prompt": "The red"},
    "ids": {"prompt": [5, 6, 7]},
    "several": {"prompt": ["The red", "The blue"]},
    "several of ids": {"prompt": [[5, 6], [7]]},
    "nothing": {"prompt": ""},
    "no prompt at all": {},
    "minuet and Continue: a gap": {"prompt": "def f(x):\n    ", "suffix": "\n    return y\n", "stop": ["\n\n"],
                                   "presence_penalty": 1.5, "temperature": 0},
    "a gap at the start of a file": {"prompt": "", "suffix": "\n    return y\n"},
    "no suffix": {"prompt": "The red", "suffix": None},
    "Continue: a model's own marks, many stops": {
        "prompt": "<fim_prefix>a<fim_suffix>b<fim_middle>", "temperature": 0.01,
        "stop": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<|endoftext|>", "</fim_middle>",
                 "</code>", "/src/", "#- coding: utf-8", "```"]},
    "OpenAI: one answer of one": {"prompt": "The red", "best_of": 1, "n": 1},
    "OpenAI: none of none": {"prompt": "The red", "best_of": 0},
    "the prompt back": {"prompt": "The red", "echo": True, "max_tokens": 0},
}


@pytest.mark.parametrize("form", TEXTS, ids=str)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_text_is_gone_on_with(http, form, stream):
    body = {"model": "demo", "max_tokens": 8, **TEXTS[form]}
    if stream:
        assert http.events(TEXT, body)[-1] == (None, "[DONE]")
        return
    answer = http.post(TEXT, body)
    assert answer.status_code == 200, answer.text
    assert all(isinstance(choice["text"], str) for choice in answer.json()["choices"])


@pytest.mark.parametrize("prompt", [[], [[]], [[5], []], [5, "a"], ["a", 5], 5, {"text": "a"}, [[-1]], [10**9], [1.5]],
                         ids=str)
def test_prompts_that_are_none_are_refused(http, prompt):
    answer = http.post(TEXT, {"model": "demo", "prompt": prompt, "max_tokens": 4})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "prompt"


def test_the_answers_to_one_prompt_do_not_depend_on_its_spelling(http):
    ids = http.post("/tokenize", {"content": "The red"}).json()["tokens"]
    texts = {http.post(TEXT, {"prompt": prompt, "max_tokens": 8}).json()["choices"][0]["text"]
             for prompt in ("The red", ids, ["The red"], [ids], [float(i) for i in ids])}
    assert len(texts) == 1


def test_a_prompt_that_is_too_long_is_told_in_openais_words(http):
    answer = http.post(CHAT, {"messages": [{"role": "user", "content": "word " * 3000}], "max_tokens": 5})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's maximum context length is 1024 tokens. However, you requested ")


@pytest.mark.parametrize("length, fields, status", [
    (1024, {"max_tokens": 0}, 200),
    (1024, {"max_tokens": 1}, 400),
    (1025, {"max_tokens": 0}, 400),
    (1025, {"max_tokens": 0, "echo": True, "logprobs": 1}, 400),
], ids=str)
def test_a_prompt_is_too_long_whatever_is_asked_of_it(http, length, fields, status):
    answer = http.post(TEXT, {"prompt": [5] * length, **fields})
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_what_does_not_fit_is_cut_or_refused_as_the_setting_says(http, start_server, connect):
    cut = http.post(CHAT, {"messages": [ASKED], "max_tokens": 5000, "ignore_eos": True, "threshold": 0.1}).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["total_tokens"] == 1024
    strict = connect(start_server("--max-tokens-over-room", "refuse").url)
    for name in ("max_tokens", "max_completion_tokens"):
        answer = strict.post(CHAT, {"messages": [ASKED], name: 5000})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == name


def test_a_template_is_applied_as_a_chat_applies_it(http):
    messages = [ASKED, said("25, 29,")]
    for end in ({}, {"add_generation_prompt": False}, {"continue_final_message": True}):
        prompt = http.post("/apply-template", {"messages": messages, **end}).json()["prompt"]
        assert prompt.endswith("25, 29,") == ("continue_final_message" in end)
        ids = [http.post("/tokenize", body).json()["tokens"] for body in ({"content": prompt}, {"messages": messages, **end})]
        assert ids[0] == ids[1]
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert http.post("/apply-template", {"messages": messages, **both}).status_code == 400


def test_the_model_asked_for_is_the_one_that_answers(start_server, connect):
    http = connect(start_server("--alias", "gpt-4o,org/name").url)
    for name in ("gpt-4o", "org/name", "demo"):
        assert http.post(CHAT, {"model": name, "messages": [ASKED], "max_tokens": 4}).json()["model"] == name
        streamed = http.events(CHAT, {"model": name, "messages": [ASKED], "max_tokens": 4})
        assert {event["model"] for _, event in streamed[:-1]} == {name}
    answer = http.post(CHAT, {"model": "gpt-5", "messages": [ASKED]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
