#!/usr/bin/env python3
"""Golden data of SDAR (dense): make_sdar.py OUT

Qwen3's layers: RMSNorm of each query and key head, then a rotation of halves, grouped-query attention, SwiGLU, no
biases; block-causal attention. Config keys, tensor names and the decoding rules are those of JetAstra/SDAR
(training/model/SDAR-4B-Chat/config.json and model.safetensors.index.json, generate.py): `block_size` is the block's
length, quotas share out the block's LENGTH over `denoising_steps`, also where the prompt's rest fills a part of it.
Steps of generate.py that overwrite decided tokens (its topk asks for more than what is masked) are not followed.
"""

import sys

import torch

from decoding import Dynamic, Quota
from golden_files import Golden, matters, random_ids, same_under_other_rule
from transformer import Maker, Model

MODELS = {
    # heads * head_dim is not the width. Mask and block from config.json.
    "sdar-tied": dict(seed=70, layers=3, width=40, heads=4, kv_heads=2, head_dim=16, mlp=72, vocab=112, tied=True,
                      block_size=4, head_scale=3.5, complete=True),
    # As published with blocks of 8; the mask is the tokenizer's.
    "sdar-untied-b8": dict(seed=71, layers=3, width=32, heads=4, kv_heads=1, head_dim=12, mlp=64, vocab=96, tied=False,
                           block_size=8, head_scale=3.5, complete=False),
}


def mask_of(about):
    return about["vocab"] - 3


def config_of(about):
    eos = about["vocab"] - 6
    config = {
        "architectures": ["SDARForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_implementation": "flex_attention", "bos_token_id": eos, "debug": False, "eos_token_id": eos,
        "block_size": about["block_size"], "ep_size": 1, "fuse_cross_entropy": True, "head_dim": about["head_dim"],
        "hidden_act": "silu", "hidden_size": about["width"], "initializer_range": 0.02,
        "intermediate_size": about["mlp"], "max_position_embeddings": 512, "max_window_layers": about["layers"],
        "micro_forward": False, "model_type": "sdar", "num_attention_heads": about["heads"],
        "num_hidden_layers": about["layers"], "num_key_value_heads": about["kv_heads"], "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "skip_checkpoint": False, "sliding_window": None,
        "tie_word_embeddings": about["tied"], "torch_dtype": "bfloat16", "transformers_version": "4.52.4",
        "use_cache": False, "use_deepep": False, "use_sliding_window": False, "vocab_size": about["vocab"]}
    if about["complete"]:
        config["mask_token_id"] = mask_of(about)
    return config


def put_attention(make, prefix, about):
    d, head = about["width"], about["head_dim"]
    make.norm(prefix + "input_layernorm", d)
    make.norm(prefix + "post_attention_layernorm", d)
    for name, heads in (("q", about["heads"]), ("k", about["kv_heads"]), ("v", about["kv_heads"])):
        make.matrix(f"{prefix}self_attn.{name}_proj", heads * head, d)
    make.matrix(prefix + "self_attn.o_proj", d, about["heads"] * head)
    # Far from 1: a forward that leaves these norms out is far off.
    make.norm(prefix + "self_attn.q_norm", head, 1.3)
    make.norm(prefix + "self_attn.k_norm", head, 0.8)


def dense_model(about, config):
    make = Maker(about["seed"])
    make.ends("embed_tokens", about["vocab"], about["width"], about["tied"], mask_of(about), about["head_scale"])
    for i in range(about["layers"]):
        put_attention(make, f"model.layers.{i}.", about)
        make.swiglu(f"model.layers.{i}.mlp.", about["width"], about["mlp"])
    return Model(config, make.tensors)


def generation_config(about):
    eos = about["vocab"] - 6
    return {"bos_token_id": eos, "do_sample": True, "eos_token_id": [eos + 2, eos], "pad_token_id": eos,
            "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0"}


def tokenizer_config(about):
    return {"added_tokens_decoder": {str(mask_of(about)): {"content": "<|MASK|>", "special": False}},
            "mask_token": "<|MASK|>"}


def write_logits(golden, name, about, model):
    """Whole blocks, a part of one, masks at the end as while a block is decoded."""
    block = about["block_size"]
    length = 3 * block + block // 2 if block < 8 else 2 * block + 3
    ids = random_ids(about["vocab"], length - 3, 7) + [mask_of(about)] * 3
    assert not any(same_under_other_rule(model, ids, block, other) for other in (None, 1, 2 * block))
    golden.logits(f"{name}_t{length}", name, model, ids, block, inner=True)
    return ids


def took_more(quota):
    """A step above its quota (the threshold took over), and one by the quota, both with masks left."""
    def check(trace):
        sizes = [len(step["commits"]) for step in trace if step["forward"] == "block"]
        return max(sizes) > quota and sizes.count(quota) > 1
    return check


def write_traces(golden, name, about, model, prefix, cases):
    for seed, (case, prompt, gen, steps, threshold) in enumerate(cases):
        rule = Quota(steps, of_length=True) if threshold is None else Dynamic(steps, threshold)
        params = {"steps_per_block": steps, "quota_of": "block_length"}
        if threshold is not None:
            params["threshold"] = threshold
        block = about["block_size"]
        golden.trace(f"{prefix}_{case}_p{prompt}_g{gen}_b{block}_s{steps}", name, model, 1000 * (seed + 1), prompt, gen,
                     block, rule, mask_of(about), True, "low_confidence",
                     "quota" if threshold is None else "dynamic", params,
                     took_more(-(-block // steps)) if threshold is not None else lambda trace: True)


# (name, prompt, gen_length, denoising steps a block, threshold)
CASES = {
    "sdar-tied": [
        ("static", 12, 16, 4, None), ("static", 9, 13, 4, None), ("static", 3, 9, 4, None), ("static", 8, 16, 2, None),
        # Two masks in the first block: quota 2 of the block's length, not 1 of its masks.
        ("static_tail", 10, 14, 3, None),
        ("static_one_step", 5, 11, 1, None),
        ("dynamic0.85", 8, 24, 4, 0.85), ("dynamic0.85", 9, 27, 4, 0.85), ("dynamic0.85", 7, 26, 2, 0.85),
        ("dynamic0.5", 17, 23, 4, 0.5)],
    "sdar-untied-b8": [
        ("static", 16, 24, 8, None), ("static", 13, 21, 8, None), ("static_tail", 12, 20, 3, None),
        ("dynamic0.85", 19, 37, 8, 0.85), ("dynamic0.6", 1, 31, 4, 0.6)],
}


def main():
    golden = Golden(sys.argv[1], "sdar")
    for name, about in MODELS.items():
        model = dense_model(about, config_of(about))
        files = {"generation_config": generation_config(about)}
        if not about["complete"]:
            files["tokenizer_config"] = tokenizer_config(about)
        golden.checkpoint(name, model, **files)
        ids = write_logits(golden, name, about, model)
        ones = {f"model.layers.{i}.self_attn.{n}_norm.weight": torch.ones(about["head_dim"])
                for i in range(about["layers"]) for n in "qk"}
        matters(model, ids, about["block_size"], weights_of_head_norms=({}, ones), theta=({"rope_theta": 10000}, {}))
        write_traces(golden, name, about, model, "sdar", CASES[name])


if __name__ == "__main__":
    main()
