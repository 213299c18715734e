#!/usr/bin/env python3
"""Writes a folder of first inputs for each fuzzer: make_corpus.py FOLDER. From this repository's own models and tests."""

import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo"
GOLDENS = ROOT / "tests" / "goldens"


def safetensors():
    for path in [DEMO / "model.safetensors", *GOLDENS.glob("plain/checkpoints/*/*.safetensors")]:
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        yield data[8:8 + size]
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}).encode()
    yield header
    yield b"#" + struct.pack("<Q", len(header)) + header + bytes(8)
    yield b"#version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


def index():
    yield json.dumps({"metadata": {"total_size": 16}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}})
    yield json.dumps({"weight_map": {"a": "../a.safetensors", "b": "/dev/null", "c": "c.safetensors"}})


def config():
    for path in [DEMO / "config.json", *ROOT.glob("tests/reference/*/checkpoints/*/config.json"),
                 *GOLDENS.glob("*/checkpoints/*/config.json")]:
        yield path.read_bytes()


def tokenizer():
    vocab = {chr(33 + i): i for i in range(94)} | {"Ġ": 94, "ab": 95}
    yield json.dumps({"version": "1.0", "added_tokens": [{"id": 96, "content": "<s>", "special": True}],
                      "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
                      "post_processor": None, "decoder": {"type": "ByteLevel"},
                      "model": {"type": "BPE", "vocab": vocab, "merges": ["a b"]}})
    for path in GOLDENS.glob("text/tokenizers/*/tokenizer.json"):
        whole = json.loads(path.read_text())
        bytes_only = {token: i for i, token in enumerate(t for t in whole["model"]["vocab"] if len(t) == 1)}
        whole["model"].update(vocab=bytes_only, merges=[])
        for number, token in enumerate(whole["added_tokens"]):
            token["id"] = len(bytes_only) + number
        yield json.dumps(whole)
    for path in GOLDENS.glob("text/refuse/*/tokenizer.json"):
        if path.stat().st_size < 65536:
            yield path.read_bytes()


def template():
    for entry in json.loads((GOLDENS / "text/chat/templates.json").read_text()).values():
        yield entry if isinstance(entry, str) else json.dumps(entry)


def request():
    chat = {"model": "demo", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}],
            "max_tokens": 8, "temperature": 0.5, "top_p": 0.9, "stop": ["x"], "logprobs": True, "top_logprobs": 2, "n": 2, "seed": 1,
            "stream": True, "stream_options": {"include_usage": True}, "logit_bias": {"5": 1}, "cache": {"policy": "off", "salt": "t"}}
    bodies = [chat, {"prompt": ["a", "b"], "suffix": "c", "echo": True, "max_tokens": 4}, {"prompt": [1, 2, 3]},
              {"input_prefix": "a", "input_suffix": "b", "prompt": "c", "n_predict": 4},
              {"input": [{"role": "user", "content": "x"}], "instructions": "i", "max_output_tokens": 5},
              {"messages": [{"role": "user", "content": "x"}], "system": "s", "max_tokens": 5, "stop_sequences": ["y"]}]
    for route in range(6):
        for body in bodies:
            yield bytes([route]) + json.dumps(body).encode()


def regex():
    for path in GOLDENS.glob("text/tokenizers/*/tokenizer.json"):
        parts = json.loads(path.read_text())["pre_tokenizer"]
        for part in parts.get("pretokenizers", [parts]):
            if "pattern" in part:
                yield part["pattern"].get("Regex", part["pattern"].get("String", "")) + "\nIt's  42 times\r\n été\u3000x"
    yield r"(?=a*b)|a" + "\n" + "a" * 2000
    yield r"(a+)+$" + "\n" + "a" * 200 + "b"
    yield r"\p{N}{1,3}+|[^\s]+|\s" + "\n1234 x"


def detokenizer():
    for text in ["plain", "été", "\u20ac\U0001f600"]:
        ids = bytearray([0])
        for byte in text.encode():
            ids += bytes([0, byte])
        yield bytes(ids)
        yield bytes(ids[:-3] + bytes([255, 6]) + ids[-2:])


def http():
    yield b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"POST http://x/v1/completions?a=b HTTP/1.0\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\n{ }"
    yield b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-Continue\r\n\r\n5;a=\"b\"\r\nhello\r\nA\r\n0123456789\r\n0\r\nT: t\r\n\r\nrest"
    yield b"POST / HTTP/1.1\nHost: x\nContent-Length: 1\nContent-Length: 2\n\n"


def state():
    record = {"prefix": "0" * 32, "kind": "threshold/32/64", "uses": 3}
    yield json.dumps({"format": "bicached probes 3", "records": [record]})
    yield "{}"


def prefix_store():
    yield bytes(range(256))
    yield bytes([0, 1, 50, 9, 1, 1, 1, 1, 3, 1, 2, 0] * 20)


def main():
    folder = pathlib.Path(sys.argv[1])
    for make in [safetensors, index, config, tokenizer, template, request, regex, detokenizer, http, state, prefix_store]:
        target = folder / make.__name__
        target.mkdir(parents=True, exist_ok=True)
        number = -1
        for number, data in enumerate(make()):
            (target / f"{number:03}").write_bytes(data if isinstance(data, bytes) else data.encode())
        if number < 0:
            sys.exit(f"no inputs for {make.__name__}")


if __name__ == "__main__":
    main()
