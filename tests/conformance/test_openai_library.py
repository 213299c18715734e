"""OpenAI's own library: its flows over chat, completions and responses, plain, streamed, asynchronous."""

import asyncio
import time

import httpx
import openai
import pytest


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def wait_until_cancelled(server, num_in_all):
    """Work that goes on to its end never counts as cancelled."""
    limit = time.monotonic() + 60
    while server.metric("bicached_cancelled_total") < num_in_all:
        assert time.monotonic() < limit, "the work goes on without its client"
        time.sleep(0.02)


# Takes long: nothing is decided early, nothing ends it, and the text comes late.
LONG = {"prompt": "The red", "max_tokens": 900,
        "extra_body": {"ignore_eos": True, "algorithm": "low_confidence", "steps": 900, "block_length": 900,
                       "cache": {"policy": "off"}}}


# --- chat ----------------------------------------------------------------------------------------

def test_the_stream_helper_puts_a_chat_together(client, shop):
    with client.chat.completions.stream(model="demo", messages=shop["messages"], logprobs=True, top_logprobs=2,
                                        stream_options={"include_usage": True}) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
    assert final.choices[0].message.content == shop["answer"]
    assert "".join(t.token for t in final.choices[0].logprobs.content) == shop["answer"]
    assert final.usage.completion_tokens == len(final.choices[0].logprobs.content)


def test_every_choice_of_a_stream_is_a_whole_answer(client, shop):
    texts, ends = ["", "", ""], [[], [], []]
    for chunk in client.chat.completions.create(model="demo", messages=shop["messages"], n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [shop["answer"]] * 3
    assert ends == [["stop"]] * 3


def test_raw_and_streaming_responses_have_headers(client, shop):
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=shop["messages"])
    assert raw.headers["x-request-id"] and raw.parse().choices[0].message.content == shop["answer"]
    with client.chat.completions.with_streaming_response.create(model="demo", messages=shop["messages"]) as response:
        assert response.headers["x-request-id"]
        assert response.parse().choices[0].message.content == shop["answer"]


def test_an_answer_goes_back_as_history(client, shop):
    answer = client.chat.completions.create(model="demo", messages=shop["messages"])
    again = [*shop["messages"], answer.choices[0].message, shop["messages"][1]]
    assert client.chat.completions.create(model="demo", messages=again).choices[0].message.content


def test_a_chat_goes_on_until_the_model_ends_it(client):
    question = [{"role": "user", "content": "Count in steps of 4 from 25, 15 numbers."}]
    answer = client.chat.completions.create(model="demo", messages=question)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content.rstrip(".").split(", ") == [str(25 + 4 * i) for i in range(15)]


def test_errors_are_of_their_classes(client, shop):
    create = client.chat.completions.create
    for wrong, kind, param in (({"model": "nope"}, openai.NotFoundError, "model"),
                               ({"temperature": 9}, openai.BadRequestError, "temperature"),
                               ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format")):
        with pytest.raises(kind) as caught:
            create(**{"model": "demo", "messages": shop["messages"], **wrong})
        assert caught.value.param == param and caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="demo", input="x")


def test_many_at_once(server, shop):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*[
                client.chat.completions.create(model="demo", messages=shop["messages"]) for _ in range(48)])
    assert {r.choices[0].message.content for r in asyncio.run(ask_all())} == {shop["answer"]}


def test_a_client_that_gives_up_ends_the_work(start_server):
    server = start_server("--ping-interval-ms", "600000")  # no ping finds out that it is gone
    client = server.client()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(model="demo", **LONG)
    wait_until_cancelled(server, 1)
    # Closed within milliseconds: not taken for a client that has said all and still reads.
    stream = client.completions.create(model="demo", stream=True, **LONG)
    next(iter(stream))
    stream.close()
    wait_until_cancelled(server, 2)


# --- completions ---------------------------------------------------------------------------------

def streamed_text(client, **fields):
    """A stream's parts put together: text, ends, log-probabilities as (token, number, offset)."""
    text, ends, logprobs = "", [], []
    for chunk in client.completions.create(stream=True, **fields):
        for choice in chunk.choices:
            text += choice.text
            ends += [choice.finish_reason] if choice.finish_reason else []
            if choice.logprobs:
                logprobs += zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.text_offset)
    return text, ends, logprobs


@pytest.mark.parametrize("fields", [
    {}, {"stop": [" "]}, {"suffix": " coins."}, {"logprobs": 2}, {"echo": True}, {"echo": True, "logprobs": 2},
    {"temperature": 1.5, "top_p": 0.9, "seed": 4, "logprobs": 0},
    {"extra_body": {"ignore_eos": True, "min_tokens": 5}, "stop": [","], "logprobs": 0},
], ids=str)
def test_a_streamed_text_is_the_plain_one(client, fields):
    fields = {"model": "demo", "prompt": "ünïcode 🤗 red mug: ", "max_tokens": 16, **fields}
    # Sums of a batch depend on its size: both are alone, and nothing is left of the one before.
    fields["extra_body"] = {"deterministic": True, **fields.get("extra_body", {})}
    plain = client.completions.create(**fields).choices[0]
    text, ends, logprobs = streamed_text(client, **fields)
    assert text == plain.text
    assert ends == [plain.finish_reason]
    if plain.logprobs is None:
        assert not logprobs
        return
    whole = list(zip(plain.logprobs.tokens, plain.logprobs.token_logprobs, plain.logprobs.text_offset))
    assert [(t, o) for t, _, o in whole] == [(t, o) for t, _, o in logprobs]
    assert [p for _, p, _ in whole] == pytest.approx([p for _, p, _ in logprobs], abs=1e-3)


def test_log_probabilities_of_a_prompt_are_those_of_its_gaps(client):
    """The plain computation: each token with its position masked, as a request with one gap has it."""
    prompt = "Price list:\n- red mug: 5 coins"
    ids = httpx.post(f"{str(client.base_url)[:-4]}/tokenize", json={"content": prompt, "add_special": True}).json()["tokens"]
    mask = httpx.post(f"{str(client.base_url)[:-4]}/tokenize", json={"content": "<|mdm_mask|>"}).json()["tokens"]
    assert len(mask) == 1
    scored = client.completions.create(model="demo", prompt=ids, echo=True, logprobs=5, max_tokens=1)
    logprobs = scored.choices[0].logprobs
    assert len(logprobs.tokens) == len(ids) + 1, "and one that was generated"
    assert "".join(logprobs.tokens) == scored.choices[0].text
    compared = 0
    for i, token in enumerate(ids):
        gap = client.completions.create(model="demo", prompt=[*ids[:i], *mask, *ids[i + 1:]], logprobs=20,
                                        max_tokens=1, extra_body={"deterministic": True}).choices[0].logprobs
        if not gap.tokens:
            continue  # the gap was left empty
        top = next(top for top in gap.top_logprobs if top)
        own = logprobs.tokens[i]
        if own in top:
            compared += 1
            assert logprobs.token_logprobs[i] == pytest.approx(top[own], abs=2e-3), (i, own)
        else:
            assert logprobs.token_logprobs[i] < min(top.values()) + 2e-3, (i, own)
        # The values: two tokens may have the same one.
        assert max(logprobs.top_logprobs[i].values()) == pytest.approx(max(top.values()), abs=2e-3)
    assert compared >= len(ids) // 2


def test_scores_tell_right_from_wrong(client):
    """As evaluation harnesses choose: the sum over a continuation's tokens, which come before one generated token."""
    def score(prompt, continuation):
        url = str(client.base_url)[:-4]
        before = len(httpx.post(f"{url}/tokenize", json={"content": prompt}).json()["tokens"])
        ids = httpx.post(f"{url}/tokenize", json={"content": prompt + continuation}).json()["tokens"]
        answer = client.completions.create(model="demo", prompt=[ids], echo=True, logprobs=1, max_tokens=1, seed=1234,
                                           temperature=0)
        return sum(answer.choices[0].logprobs.token_logprobs[before:-1])

    assert score("The blue lamp costs", " 19 coins.") > score("The blue lamp costs", " xyz qqq zz")


# --- responses -----------------------------------------------------------------------------------

def test_a_response(client, shop):
    answer = client.responses.create(model="demo", instructions=shop["system"], input=shop["question"])
    assert answer.output_text == shop["answer"]
    assert (answer.status, answer.object, answer.error) == ("completed", "response", None)
    assert answer.id.startswith("resp_") and answer.output[0].id.startswith("msg_")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.instructions == shop["system"]


def test_a_streamed_response_has_its_own_events(client, shop):
    events = list(client.responses.create(model="demo", input=shop["messages"], stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                          "response.completed"]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events[4:-4]) == shop["answer"]
    assert events[-1].response.output_text == shop["answer"]
    assert events[-1].response.usage.output_tokens > 0


def test_the_stream_helper_puts_a_response_together(client, shop):
    with client.responses.stream(model="demo", input=shop["messages"]) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == shop["answer"]


def test_a_response_that_is_cut_is_incomplete(client):
    answer = client.responses.create(model="demo", input="Count in steps of 4 from 25, 15 numbers.", max_output_tokens=4)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 4


def test_a_response_reads_items_of_every_kind(client):
    answer = client.responses.create(model="demo", input=[
        {"role": "user", "content": [{"type": "input_text", "text": "What time is it?"}]},
        {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Noon."}]},
        {"type": "reasoning", "id": "r1", "summary": []},
        {"role": "user", "content": "Hi"}], tools=[{"type": "function", "name": "clock", "parameters": {}}])
    assert answer.status == "completed"


@pytest.mark.parametrize("fields, param", [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"background": True}, "background"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format"),
    ({"include": ["message.output_text.logprobs"]}, "include"),
    ({"tool_choice": "required", "tools": []}, "tool_choice"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
    ({"input": []}, "input"),
], ids=str)
def test_what_a_response_can_not_be_is_named(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "demo", "input": "hi", **fields})
    assert caught.value.param == param


# --- models --------------------------------------------------------------------------------------

def test_models_tell_their_length(client):
    model = client.models.list().data[0]
    assert (model.id, model.max_model_len) == ("demo", 1024)
    assert client.models.retrieve("demo").id == "demo"
