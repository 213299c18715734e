"""Model folders as they are found: files that are none, other names, old forms."""

import json
import os
import pathlib
import shutil
import struct

import pytest

from programs import DEMO
from server_process import generate


def json_of(name):
    return json.loads((DEMO / name).read_text())


def test_files_that_are_none(variant):
    code, text = generate(variant(model__safetensors=b"version https://git-lfs.github.com/spec/v1\nsize 1\n"))
    assert code == 2 and "Git LFS" in text


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
                                  "generation_config.json", "special_tokens_map.json"])
def test_a_pipe_as_a_file_is_refused_by_its_kind(variant, name):
    folder = variant(**{name.replace(".", "__"): None})
    os.mkfifo(folder / name)
    code, text = generate(folder)
    assert code == 2 and "a named pipe" in text and name in text


def with_names(rename, extra=()):
    """The weights under other names."""
    data = (DEMO / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8:8 + size]), data[8 + size:]
    renamed = {(name if name == "__metadata__" else rename(name)): about for name, about in header.items()}
    for name in extra:
        renamed[name] = {"dtype": "F32", "shape": [1], "data_offsets": [len(rest), len(rest) + 4]}
        rest += struct.pack("<f", 1)
    text = json.dumps(renamed).encode()
    return struct.pack("<Q", len(text)) + text + rest


@pytest.mark.parametrize("rename", [
    lambda name: "_orig_mod." + name, lambda name: "module." + name, lambda name: "module._orig_mod." + name,
    lambda name: name.removeprefix("model."), lambda name: "_orig_mod." + name.removeprefix("model."),
    lambda name: "model." + name])
def test_weights_under_names_of_training_code(variant, rename):
    code, text = generate(variant(model__safetensors=with_names(rename)))
    assert code == 0 and "Hello" in text, text


def test_tensors_that_follow_from_the_configuration_are_left_out(variant):
    extra = ["model.transformer.blocks.0.rotary_emb.inv_freq", "model.transformer.rotary_emb.inv_freq"]
    assert generate(variant(model__safetensors=with_names(lambda name: name, extra)))[0] == 0


def test_an_old_tokenizer(variant):
    tokenizer, config = json_of("tokenizer.json"), json_of("tokenizer_config.json")
    del tokenizer["model"]["type"]
    for name in ("bos_token", "eos_token", "added_tokens_decoder"):
        config.pop(name, None)
    code, text = generate(variant(tokenizer__json=tokenizer, tokenizer_config__json=config))
    assert code == 0 and "Hello" in text, text


def test_a_template_of_parts(serve, variant):
    config = json_of("tokenizer_config.json")
    config["chat_template"] = ("{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}"
                               "{% endfor %}")
    server = serve(model=variant(tokenizer_config__json=config))
    messages = [{"role": "system", "content": "s t"}, {"role": "user", "content": [{"type": "text", "text": "u v"}]}]
    answer = server.request("POST", "/apply-template", json={"messages": messages}).json()
    assert answer["prompt"] == "<system>s t<user>u v"


def test_a_snapshot_is_called_by_its_repository(serve, tmp_path):
    folder = tmp_path / "models--org--demo-8b" / "snapshots" / ("0123456789abcdef" * 2)
    folder.parent.mkdir(parents=True)
    shutil.copytree(DEMO, folder, ignore=lambda _, names: [n for n in names if not pathlib.Path(n).suffix])
    assert serve(model=folder).get("/v1/models").json()["data"][0]["id"] == "org/demo-8b"


def test_weights_that_are_cut_end_a_start_and_no_server(variant, serve):
    model = variant(model__safetensors=(DEMO / "model.safetensors").read_bytes())
    weights = model / "model.safetensors"
    server = serve("--cache-policy", "off", model=model)
    before = server.chat().json()["choices"]
    os.truncate(weights, 100_000)
    assert server.chat().json()["choices"] == before
    code, text = generate(model)
    assert code == 2
    assert "model.safetensors" in text and "cut" in text
