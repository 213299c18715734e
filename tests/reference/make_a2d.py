#!/usr/bin/env python3
"""Golden data of A2D-Qwen3: make_a2d.py OUT

Qwen3's layers (RMSNorm of each query and key head before a rotation of halves, grouped-query attention, SwiGLU, no
biases) with full attention, as ZHZisZZ/dllm trains them. Decoding: LLaDA's fixed quota, Fast-dLLM's threshold, and
d3LLM's several blocks at once.
"""

import sys

import torch

from decoding import MultiBlock, Quota, Threshold
from golden_files import Golden, matters, random_ids, same_under_other_rule
from make_sdar import dense_model, mask_of

MODELS = {
    # heads * head_dim is not the width, as in Qwen3-0.6B.
    "a2d-tiny": dict(seed=40, layers=3, width=48, heads=4, kv_heads=2, head_dim=16, mlp=96, vocab=120, tied=True,
                     head_scale=3.5, mask_in_config=True),
    "a2d-untied": dict(seed=41, layers=4, width=32, heads=4, kv_heads=4, head_dim=12, mlp=80, vocab=90, tied=False,
                       head_scale=3.0, mask_in_config=False),
}


def config_of(about):
    config = {
        "model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"], "attention_bias": False,
        "hidden_act": "silu", "hidden_size": about["width"], "num_hidden_layers": about["layers"],
        "num_attention_heads": about["heads"], "num_key_value_heads": about["kv_heads"], "head_dim": about["head_dim"],
        "intermediate_size": about["mlp"], "vocab_size": about["vocab"], "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": None, "use_sliding_window": False,
        "tie_word_embeddings": about["tied"], "eos_token_id": about["vocab"] - 5}
    if about["mask_in_config"]:
        config["mask_token_id"] = mask_of(about)
    return config


def tokenizer_config(about):
    return {"added_tokens_decoder": {str(mask_of(about)): {"content": "<|mask|>", "special": True}}}


# (name, prompt, gen_length, block_length, rule, its schedule and parameters)
def quota(steps):
    return Quota(steps, of_length=False), "quota", {"steps_per_block": steps, "quota_of": "masks"}


CASES = {
    "a2d-tiny": [
        ("lowconf_g32_b32_s32", 12, 32, 32, *quota(32)), ("lowconf_g32_b8_s4", 7, 32, 8, *quota(4)),
        ("multi_block_p10_g24_b6", 10, 24, 6, MultiBlock(1.2, 0.3), "multi_block",
         {"entropy_threshold": 1.2, "block_add_threshold": 0.3})],
    "a2d-untied": [
        ("lowconf_uneven", 15, 24, 12, *quota(5)), ("lowconf_p1", 1, 16, 16, *quota(16)),
        ("threshold0.4_p9_g24_b12", 9, 24, 12, Threshold(0.4), "threshold", {"threshold": 0.4})],
}


def main():
    golden = Golden(sys.argv[1], "a2d-qwen3")
    for name, about in MODELS.items():
        model = dense_model(about, config_of(about))
        files = {} if about["mask_in_config"] else {"tokenizer_config": tokenizer_config(about)}
        golden.checkpoint(name, model, **files)
        ids = random_ids(about["vocab"], 9, 7) + [mask_of(about)] * 6
        assert not same_under_other_rule(model, ids, None, 4)
        golden.logits(f"{name}_t15", name, model, ids, None, inner=True)
        ones = {f"model.layers.{i}.self_attn.{n}_norm.weight": torch.ones(about["head_dim"])
                for i in range(about["layers"]) for n in "qk"}
        matters(model, ids, None, weights_of_head_norms=({}, ones), theta=({"rope_theta": 10000}, {}))
        for seed, (case, prompt, gen, block, rule, schedule, params) in enumerate(CASES[name]):
            golden.trace(f"a2d_{case}", name, model, 1000 * (seed + 1), prompt, gen, block, rule, mask_of(about), False,
                         "low_confidence", schedule, params)


if __name__ == "__main__":
    main()
