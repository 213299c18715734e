"""Editors: llama.cpp's /infill and Mistral's /v1/fim/completions."""

import pytest

INFILL, FIM = "/infill", "/v1/fim/completions"
BEFORE, AFTER = "Price list:\n- red mug: 5 coins\n- ", ": 19 coins\n"


def test_infill(http):
    body = {"input_prefix": BEFORE, "input_suffix": AFTER, "n_predict": 8}
    answer = http.post(INFILL, body).json()
    assert answer["content"] and answer["stop"] is True
    assert answer["stop_type"] in ("eos", "limit")
    assert answer["tokens_evaluated"] > 10
    other = http.post(INFILL, {**body, "input_suffix": "."}).json()
    assert other["content"] != answer["content"], "what stands behind is seen"


def test_infill_of_llama_vim(http):
    answer = http.post(INFILL, {
        "id_slot": 0, "input_prefix": "int main() {\n", "input_suffix": "}\n", "prompt": "    int n = ",
        "input_extra": [{"filename": "a.h", "text": "int one();"}, {"text": "int two();"}], "n_predict": 16, "n_indent": 4,
        "top_k": 40, "top_p": 0.9, "samplers": ["top_k", "top_p", "infill"], "stream": False, "cache_prompt": True,
        "t_max_prompt_ms": 500, "t_max_predict_ms": 500, "response_fields": ["content"]})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["prompt"].endswith("int one();\nint two();\nint main() {\n    int n = ")
    assert "a.h" in body["prompt"]


def test_llama_vim_warms_the_cache(http):
    answer = http.post(INFILL, {
        "input_prefix": "", "input_suffix": "", "input_extra": [{"filename": "a.h", "text": "int one();"}], "prompt": "",
        "n_predict": 0, "temperature": 0.0, "stream": False, "samplers": [], "cache_prompt": True, "t_max_prompt_ms": 1,
        "t_max_predict_ms": 1, "response_fields": [""]})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["content"], answer.json()["tokens_predicted"]) == ("", 0)


def test_a_streamed_infill_is_the_plain_one(http):
    body = {"input_prefix": BEFORE, "input_suffix": AFTER, "n_predict": 8}
    plain = http.post(INFILL, body).json()
    events = [event for _, event in http.events(INFILL, body)]
    assert "".join(event["content"] for event in events) == plain["content"]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["tokens_predicted"] == plain["tokens_predicted"]


@pytest.mark.parametrize("wrong", [
    {"input_suffix": None}, {"input_prefix": 5}, {"input_extra": {}}, {"input_extra": [{}]},
    {"input_extra": [{"filename": "ok"}]}, {"input_extra": [{"filename": 1, "text": "a"}]},
    {"input_extra": [{"filename": "a", "text": 1}]}, {"n_predict": "many"}, {"prompt": []},
], ids=str)
def test_an_infill_that_is_none_is_refused(http, wrong):
    body = {"input_prefix": "a", "input_suffix": "b", "n_predict": 4, **wrong}
    answer = http.post(INFILL, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(next(iter(wrong)))


def test_fill_in_the_middle(http):
    body = {"model": "demo", "prompt": BEFORE, "suffix": AFTER, "max_tokens": 8, "temperature": 0, "random_seed": 3,
            "stop": ["\n"]}
    answer = http.post(FIM, body).json()
    assert answer["object"] == "chat.completion"
    text = answer["choices"][0]["message"]["content"]
    raw = http.post("/v1/completions", body).json()
    assert text == raw["choices"][0]["text"], "one generation is behind both"
    events = http.events(FIM, body)
    assert events[-1] == (None, "[DONE]")
    assert "".join(e["choices"][0]["delta"].get("content") or "" for _, e in events[:-1] if e["choices"]) == text


def test_every_gap_of_a_text_is_filled(http):
    answer = http.post("/v1/completions", {
        "prompt": "- red mug: <|mdm_mask|><|mdm_mask|> coins\n- blue lamp: <|mdm_mask|><|mdm_mask|> coins\n"}).json()
    choice = answer["choices"][0]
    assert len(choice["infill"]) == 2
    assert " coins\n- blue lamp: " in choice["text"]
