"""The server as the official OpenAI client sees it."""

import httpx
import openai
import pytest

PRICE_LIST = """You are the assistant of the shop Cedar. Answer briefly. Price list:
- red mug: 5 coins, aisle 2, stock 11
- blue lamp: 19 coins, aisle 4, stock 3
- green kettle: 21 coins, aisle 4, stock 9
- soft pillow: 15 coins, aisle 4, stock 0"""
QUESTION = "How much is the blue lamp?"
ANSWER = "The blue lamp costs 19 coins."
MESSAGES = [{"role": "system", "content": PRICE_LIST}, {"role": "user", "content": QUESTION}]


def ask(client, **fields):
    return client.chat.completions.create(model="demo", **{"messages": MESSAGES, **fields})


def test_plain_answer(client):
    answer = ask(client)
    choice = answer.choices[0]
    assert choice.message.content == ANSWER
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens > 50
    assert 1 <= answer.usage.completion_tokens < 64
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.diffusion["forwards"] >= 1


def test_streamed_answer_is_the_plain_one(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == ask(client).usage.completion_tokens


@pytest.mark.parametrize("question, answer", [
    ("what's in aisle 4?", "The blue lamp, the green kettle, the soft pillow. 3 items."),
    ("Do you have a red kettle?", "Sorry, there is no red kettle on the list."),
])
def test_known_answers(client, question, answer):
    messages = [MESSAGES[0], {"role": "user", "content": question}]
    assert ask(client, messages=messages).choices[0].message.content == answer


def test_text_parts_are_joined(client):
    parts = [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]
    messages = [MESSAGES[0], {"role": "user", "content": parts}]
    assert ask(client, messages=messages).choices[0].message.content == ANSWER


def test_two_choices(client):
    answer = ask(client, n=2)
    assert [c.index for c in answer.choices] == [0, 1]
    assert [c.message.content for c in answer.choices] == [ANSWER, ANSWER]
    assert answer.usage.completion_tokens == 2 * ask(client).usage.completion_tokens


def test_logprobs(client):
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == ANSWER
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob


def test_stop(client):
    choice = ask(client, stop=["costs"]).choices[0]
    assert choice.message.content == "The blue lamp "
    assert choice.finish_reason == "stop"
    chunks = list(ask(client, stop=["costs"], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "The blue lamp "


def test_max_tokens_cuts(client):
    answer = ask(client, max_tokens=2)
    assert answer.usage.completion_tokens <= 2
    assert len(answer.choices[0].message.content) < len(ANSWER)


def test_seed_decides(client):
    # A chat answer of this model hardly varies; a raw beginning does.
    def sample(seed):
        answer = client.completions.create(model="demo", prompt="The red", max_tokens=16, temperature=2, seed=seed)
        return answer.choices[0].text

    assert sample(11) == sample(11)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_completions(client):
    prompt = httpx.post(str(client.base_url).replace("/v1/", "/apply-template"),
                        json={"messages": MESSAGES}).json()["prompt"]
    ids = httpx.post(str(client.base_url).replace("/v1/", "/tokenize"),
                     json={"messages": MESSAGES}).json()["tokens"]
    answer = client.completions.create(model="demo", prompt=ids, max_tokens=64, logprobs=1)
    assert answer.choices[0].text == ANSWER
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.completion_tokens
    assert "blue lamp" in prompt
    two = client.completions.create(model="demo", prompt=[ids, ids], max_tokens=64)
    assert [c.text for c in two.choices] == [ANSWER, ANSWER]


def test_infilling_sees_the_suffix(client):
    answer = client.completions.create(model="demo", prompt="The blue lamp costs",
                                       suffix=" coins.", max_tokens=4, extra_body={"steps": 4})
    assert answer.usage.completion_tokens <= 4
    echoed = client.completions.create(model="demo", prompt="The blue lamp costs",
                                       suffix=" coins.", max_tokens=4, echo=True,
                                       extra_body={"steps": 4})
    assert echoed.choices[0].text == "The blue lamp costs" + answer.choices[0].text
    alone = client.completions.create(model="demo", prompt="The blue lamp costs", max_tokens=4)
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens


def test_fields_of_this_server(client):
    answer = ask(client, extra_body={"algorithm": "low_confidence", "steps": 16,
                                     "block_length": 16, "cache": {"policy": "off"}})
    assert answer.choices[0].message.content == ANSWER


def test_denoise_events(server):
    body = {"messages": MESSAGES, "stream": True, "diffusion_stream": True}
    text = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=600).text
    assert "event: denoise\ndata: {" in text
    assert text.endswith("data: [DONE]\n\n")


def test_models(client):
    models = client.models.list().data
    assert models[0].object == "model"
    assert client.models.retrieve(models[0].id).id == models[0].id


@pytest.mark.parametrize("fields, param", [
    ({"temperature": 3}, "temperature"),
    ({"n": 0}, "n"),
    ({"top_logprobs": 50, "logprobs": True}, "top_logprobs"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"extra_body": {"algorithm": "magic"}}, "algorithm"),
    ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0]"),
])
def test_bad_fields_are_named(client, fields, param):
    with pytest.raises(openai.BadRequestError) as failure:
        ask(client, **fields)
    assert failure.value.param == param


def test_too_long(client):
    with pytest.raises(openai.BadRequestError) as failure:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "one two " * 3000}])
    assert failure.value.code == "context_length_exceeded"
    assert "maximum context length is 1024 tokens" in failure.value.message
    # Too long an answer alone is cut to what fits.
    assert ask(client, max_tokens=5000).choices[0].message.content


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as failure:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert failure.value.code == "model_not_found"


def test_unknown_route(server):
    response = httpx.get(server.url + "/v2/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
    assert response.headers["x-request-id"]


def test_api_key(start_server, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("right-key\n")
    guarded = start_server("--api-key-file", str(keys))
    with pytest.raises(openai.AuthenticationError):
        ask(guarded.client())
    allowed = openai.OpenAI(base_url=guarded.url + "/v1", api_key="right-key", max_retries=0)
    assert ask(allowed).choices[0].message.content == ANSWER
    assert httpx.get(guarded.url + "/health").status_code == 200
    assert httpx.get(guarded.url + "/metrics").status_code == 401
