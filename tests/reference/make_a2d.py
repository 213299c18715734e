#!/usr/bin/env python3
"""Golden data of the family a2d-qwen3, in the form of `golden_check`: tiny checkpoints, logits, traces.

make_a2d.py OUT

A plain float32 forward and decoding loop, written from the public descriptions of Qwen3 (RMSNorm of each query and key
head before a rotation of halves, grouped-query attention, SwiGLU, no biases) and of LLaDA's decoding (fixed number of
tokens a step, the most probable first). Nothing of the server is used, so that both can only agree by being right.
Every case is decoded in float64 as well; one whose decisions hang on rounding is an error, not a golden case.
"""

import json
import math
import pathlib
import struct
import sys

import torch

MODELS = {
    # heads * head_dim is not the width, as in Qwen3-0.6B.
    "a2d-tiny": dict(layers=3, width=48, heads=4, kv_heads=2, head_dim=16, mlp=96, vocab=120, tied=True, mask_in_config=True),
    "a2d-untied": dict(layers=4, width=32, heads=4, kv_heads=4, head_dim=12, mlp=80, vocab=90, tied=False, mask_in_config=False),
}
TRACES = [
    ("a2d_lowconf_g32_b32_s32", "a2d-tiny", 12, 32, 32, 32),
    ("a2d_lowconf_g32_b8_s16", "a2d-tiny", 7, 32, 8, 16),
    ("a2d_lowconf_uneven", "a2d-untied", 15, 24, 12, 10),
    ("a2d_lowconf_p1", "a2d-untied", 1, 16, 16, 16),
]
EPS, THETA = 1e-6, 1e6


def config_of(model):
    vocab = model["vocab"]
    config = {
        "model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"], "attention_bias": False, "hidden_act": "silu",
        "hidden_size": model["width"], "num_hidden_layers": model["layers"], "num_attention_heads": model["heads"],
        "num_key_value_heads": model["kv_heads"], "head_dim": model["head_dim"], "intermediate_size": model["mlp"],
        "vocab_size": vocab, "max_position_embeddings": 512, "rms_norm_eps": EPS, "rope_theta": THETA, "rope_scaling": None,
        "use_sliding_window": False, "tie_word_embeddings": model["tied"], "eos_token_id": vocab - 5}
    if model["mask_in_config"]:
        config["mask_token_id"] = mask_of(model)
    return config


def mask_of(model):
    return model["vocab"] - 3


def weights_of(model, seed):
    random = torch.Generator().manual_seed(seed)
    d, q, kv = model["width"], model["heads"] * model["head_dim"], model["kv_heads"] * model["head_dim"]

    def matrix(rows, columns, scale=1.5):
        return torch.randn(rows, columns, generator=random) * scale / math.sqrt(columns)

    def norm(size):
        return 1 + 0.1 * torch.randn(size, generator=random)

    tensors = {"model.embed_tokens.weight": matrix(model["vocab"], d, math.sqrt(d)), "model.norm.weight": norm(d)}
    if not model["tied"]:
        tensors["lm_head.weight"] = matrix(model["vocab"], d, 3.0)
    # The mask token is not to be predicted: what to do then is another question.
    tensors["model.embed_tokens.weight" if model["tied"] else "lm_head.weight"][mask_of(model)] *= 0.1
    for i in range(model["layers"]):
        block = f"model.layers.{i}."
        tensors[block + "input_layernorm.weight"] = norm(d)
        tensors[block + "post_attention_layernorm.weight"] = norm(d)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            tensors[block + f"self_attn.{name}_proj.weight"] = matrix(rows, d)
        tensors[block + "self_attn.o_proj.weight"] = matrix(d, q)
        # Far from 1: a forward that leaves these norms out is far off.
        tensors[block + "self_attn.q_norm.weight"] = 1.3 * norm(model["head_dim"])
        tensors[block + "self_attn.k_norm.weight"] = 0.8 * norm(model["head_dim"])
        tensors[block + "mlp.gate_proj.weight"] = matrix(model["mlp"], d)
        tensors[block + "mlp.up_proj.weight"] = matrix(model["mlp"], d)
        tensors[block + "mlp.down_proj.weight"] = matrix(d, model["mlp"])
    return tensors


def rms_norm(x, weight):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def rotate(x, positions):
    """x: [T, heads, head_dim]; halves against halves."""
    half = x.shape[-1] // 2
    angles = positions[:, None] / THETA ** (torch.arange(half, dtype=torch.float64) / half)
    cosine, sine = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def forward(model, tensors, ids, dtype, seen=None):
    """Logits [T, V] of all rows; every position sees every other."""
    w = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    size, rows = model["head_dim"], len(ids)
    positions = torch.arange(rows, dtype=torch.float64)
    x = w["model.embed_tokens.weight"][torch.tensor(ids)]
    for i in range(model["layers"]):
        block = f"model.layers.{i}."
        normed = rms_norm(x, w[block + "input_layernorm.weight"])
        q, k, v = (normed @ w[block + f"self_attn.{name}_proj.weight"].T for name in "qkv")
        q, k, v = (part.view(rows, -1, size) for part in (q, k, v))
        q = rotate(rms_norm(q, w[block + "self_attn.q_norm.weight"]), positions)
        k = rotate(rms_norm(k, w[block + "self_attn.k_norm.weight"]), positions)
        if seen is not None:
            seen[f"layers.{i}.q_rope"], seen[f"layers.{i}.k_rope"] = q.transpose(0, 1), k.transpose(0, 1)
        repeat = model["heads"] // model["kv_heads"]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(rows, -1)
        x = x + mixed @ w[block + "self_attn.o_proj.weight"].T
        normed = rms_norm(x, w[block + "post_attention_layernorm.weight"])
        gate, up = (normed @ w[block + f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (torch.nn.functional.silu(gate) * up) @ w[block + "mlp.down_proj.weight"].T
        if seen is not None:
            seen[f"layers.{i}.hidden"] = x
    head = w["model.embed_tokens.weight" if model["tied"] else "lm_head.weight"]
    return rms_norm(x, w["model.norm.weight"]) @ head.T


def decode(model, tensors, prompt, gen_length, block_length, steps, dtype):
    """LLaDA's loop at temperature 0: the canvas, and what each forward decided."""
    mask = mask_of(model)
    canvas = list(prompt) + [mask] * gen_length
    masked = [False] * len(prompt) + [True] * gen_length
    trace, num_blocks = [], gen_length // block_length
    for block in range(num_blocks):
        begin = len(prompt) + block * block_length
        a_block = steps // num_blocks
        for step in range(a_block):
            quota = block_length // a_block + (step < block_length % a_block)
            shares = forward(model, tensors, canvas, dtype).softmax(-1)
            choices = []
            for position in range(begin, begin + block_length):
                if masked[position]:
                    confidence, token = shares[position].max(-1)
                    choices.append((-confidence.item(), position, token.item()))
            commits = sorted((p, t, -c) for c, p, t in sorted(choices)[:quota])
            for position, token, _ in commits:
                assert token != mask, "the model predicts the mask token: take another seed"
                canvas[position], masked[position] = token, False
            trace.append({"step": len(trace), "block": block, "forward": "full", "rows": [0, len(canvas)], "batch": 1,
                          "commits": [[p, t, round(c, 9)] for p, t, c in commits]})
    return canvas, trace


def decisions(trace):
    return [[commit[:2] for commit in step["commits"]] for step in trace]


def write_tensors(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().to(torch.float32).numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_json(path, value):
    path.write_text(json.dumps(value) + "\n")


def prompt_of(model, length, seed):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, model["vocab"] - 6, (length,), generator=random).tolist()


def main():
    out = pathlib.Path(sys.argv[1])
    torch.set_num_threads(1)
    for folder in ("logits", "traces"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    weights = {}
    for seed, (name, model) in enumerate(MODELS.items()):
        weights[name] = weights_of(model, 40 + seed)
        folder = out / "checkpoints" / name
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config_of(model))
        if not model["mask_in_config"]:
            write_json(folder / "tokenizer_config.json",
                       {"added_tokens_decoder": {str(mask_of(model)): {"content": "<|mask|>", "special": True}}})
        write_tensors(folder / "model.safetensors", weights[name])
        ids = prompt_of(model, 9, 7) + [mask_of(model)] * 6
        seen = {}
        logits = forward(model, weights[name], ids, torch.float32, seen)
        exact = forward(model, weights[name], ids, torch.float64)
        assert (logits - exact).abs().max() < 5e-4
        write_tensors(out / "logits" / f"{name}_t15.safetensors", {"logits": logits, **seen})
        write_json(out / "logits" / f"{name}_t15.json",
                   {"checkpoint": name, "family": "a2d-qwen3", "file": f"{name}_t15.safetensors", "input_ids": ids})
    for seed, (name, checkpoint, prompt_length, gen_length, block_length, steps) in enumerate(TRACES):
        model = MODELS[checkpoint]
        prompt = prompt_of(model, prompt_length, 100 + seed)
        canvas, trace = decode(model, weights[checkpoint], prompt, gen_length, block_length, steps, torch.float32)
        _, exact = decode(model, weights[checkpoint], prompt, gen_length, block_length, steps, torch.float64)
        assert decisions(trace) == decisions(exact), f"{name}: decided by rounding"
        write_json(out / "traces" / f"{name}.json",
                   {"name": name, "family": "a2d-qwen3", "checkpoint": checkpoint, "algorithm": "low_confidence",
                    "schedule": "quota", "cache": "none",
                    "params": {"gen_length": gen_length, "block_length": block_length, "steps": steps,
                               "mask_id": mask_of(model)},
                    "prompt_ids": prompt, "output_ids": canvas, "num_forwards": len(trace), "steps": trace})


if __name__ == "__main__":
    main()
