#!/usr/bin/env python3
"""Golden data of LLaDA2.0 and LLaDA2.1: make_llada2.py OUT

Block-causal attention in blocks of 32. Config keys from inclusionAI/dFactory (configs/model_configs/llada2_mini), order
of operations and decoding from ZHZisZZ/dllm (pipelines/llada2, llada21) and inclusionAI/dInfer (modeling_llada2_moe.py):
  * `query_key_value` holds all query heads, then all key heads, then all value heads; `query_layernorm` and
    `key_layernorm` per head, then the rotation of the first head_dim * partial_rotary_factor numbers of a head, halves
    within them;
  * layers from `first_k_dense_replace` on have experts. Router in float32: sigmoid of each expert; with
    `mlp.gate.expert_bias` added, a group's score is the sum of its two best, the best `topk_group` groups are left, of
    them the best `num_experts_per_tok` experts. Their weights are the sigmoids without bias, divided by their sum
    (+ 1e-20), times `routed_scaling_factor`. `mlp.shared_experts` (moe_intermediate_size * num_shared_experts) is added.
The block's length is in no key of config.json: the cases with another one give it as the argument that `generate` has.
Decoding 2.0 stops at end tokens, which these traces do not.
"""

import sys

import torch

from decoding import Dynamic, Editing
from golden_files import Golden, matters, random_ids, same_under_other_rule
from transformer import Maker, Model

MODELS = {
    "llada2-tiny": dict(seed=60, layers=3, width=32, heads=4, kv_heads=2, head_dim=16, mlp=48, vocab=104, experts=16,
                        top=3, groups=4, best_groups=2, expert=8, shared=1, dense=1, partial=0.5, scaling=2.5),
    # Experts in every layer, one group, two shared experts, a quarter of each head rotated.
    "llada2-one-group": dict(seed=61, layers=2, width=32, heads=2, kv_heads=2, head_dim=16, mlp=48, vocab=96, experts=6,
                             top=2, groups=1, best_groups=1, expert=12, shared=2, dense=0, partial=0.25, scaling=1.5),
}
BLOCK = 32


class Llada2(Model):
    embedding, attention, attention_out = "word_embeddings", "attention", "dense"

    def rotary_size(self):
        return int(self.head_size() * self.config["partial_rotary_factor"])

    def queries_keys_values(self, prefix, x):
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        packed = self.product(prefix + "query_key_value", x).view(len(x), -1, self.head_size())
        q, k, v = packed.split([heads, kv_heads, kv_heads], 1)
        return self.norm(prefix + "query_layernorm", q), self.norm(prefix + "key_layernorm", k), v

    def is_moe(self, layer):
        return layer >= self.config["first_k_dense_replace"]

    def route(self, prefix, x):
        config = self.config
        scores = self.product(prefix + "gate", x).sigmoid()
        groups = (scores + self.tensors[prefix + "gate.expert_bias"]).view(len(x), config["n_group"], -1)
        of_group = groups.topk(2, -1).values.sum(-1)
        self.note_router(of_group, config["topk_group"])
        left = torch.zeros_like(of_group, dtype=torch.bool).scatter(-1, of_group.topk(config["topk_group"], -1).indices, True)
        biased = groups.masked_fill(~left[..., None], -torch.inf).view(len(x), -1)
        self.note_router(biased, config["num_experts_per_tok"])
        which = biased.topk(config["num_experts_per_tok"], -1).indices
        weights = scores.gather(-1, which)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * config["routed_scaling_factor"]
        return torch.zeros_like(scores).scatter(-1, which, weights)

    def mlp(self, layer, prefix, x, router=None):
        result = super().mlp(layer, prefix, x, router)
        return result + self.swiglu(prefix + "mlp.shared_experts.", x) if self.is_moe(layer) else result


def mask_of(about):
    return about["vocab"] - 2


def config_of(about):
    return {
        "architectures": ["LLaDA2MoeModelLM"], "attention_dropout": 0.0, "num_hidden_layers": about["layers"],
        "hidden_size": about["width"], "intermediate_size": about["mlp"], "first_k_dense_replace": about["dense"],
        "hidden_act": "silu", "max_position_embeddings": 512, "model_type": "llada2_moe",
        "moe_intermediate_size": about["expert"], "norm_topk_prob": True, "num_experts_per_tok": about["top"],
        "norm_head": False, "num_attention_heads": about["heads"], "num_experts": about["experts"],
        "num_key_value_heads": about["kv_heads"], "rope_theta": 600000, "rope_scaling": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.52.3", "use_bias": False,
        "use_rmsnorm": True, "rms_norm_eps": 1e-06, "head_dim": about["head_dim"],
        "num_shared_experts": about["shared"], "use_cache": False, "use_qkv_bias": False, "embedding_dropout": 0.0,
        "norm_softmax": False, "output_dropout": 0.0, "vocab_size": about["vocab"],
        "rotary_dim": int(about["head_dim"] * about["partial"]), "using_split_qkv_in_self_attention": False,
        "router_dtype": "fp32", "moe_router_enable_expert_bias": True, "routed_scaling_factor": about["scaling"],
        "n_group": about["groups"], "topk_group": about["best_groups"], "score_function": "sigmoid",
        "initializer_range": 0.02, "max_window_layers": 28, "output_router_logits": False,
        "pad_token_id": about["vocab"] - 5, "partial_rotary_factor": about["partial"], "use_sliding_window": False}


def model_of(about):
    make, d, head = Maker(about["seed"]), about["width"], about["head_dim"]
    make.ends("word_embeddings", about["vocab"], d, False, mask_of(about), 4.5)
    model = Llada2(config_of(about), make.tensors)
    for i in range(about["layers"]):
        prefix = f"model.layers.{i}."
        make.norm(prefix + "input_layernorm", d)
        make.norm(prefix + "post_attention_layernorm", d)
        make.matrix(prefix + "attention.query_key_value", (about["heads"] + 2 * about["kv_heads"]) * head, d)
        make.matrix(prefix + "attention.dense", d, about["heads"] * head)
        # Far from 1: a forward that leaves these norms out is far off.
        make.norm(prefix + "attention.query_layernorm", head, 1.3)
        make.norm(prefix + "attention.key_layernorm", head, 0.8)
        if not model.is_moe(i):
            make.swiglu(prefix + "mlp.", d, about["mlp"])
            continue
        make.matrix(prefix + "mlp.gate", about["experts"], d, 1.0)
        make.put(prefix + "mlp.gate.expert_bias", 0.2 * make.normal(about["experts"]))
        for e in range(about["experts"]):
            make.swiglu(f"{prefix}mlp.experts.{e}.", d, about["expert"])
        make.swiglu(prefix + "mlp.shared_experts.", d, about["expert"] * about["shared"])
    return model


def tokenizer_config(about):
    """No key of config.json names mask and end."""
    return {"added_tokens_decoder": {str(mask_of(about)): {"content": "<|mask|>", "special": True},
                                     str(about["vocab"] - 5): {"content": "<|endoftext|>", "special": True}}}


def took_more(quota):
    """A step above its quota (the threshold took over), and one by the quota."""
    def check(trace):
        sizes = [len(step["commits"]) for step in trace if step["forward"] == "block"]
        return max(sizes) > quota and sizes.count(quota) > 1
    return check


def edits(num_edits, exhausted=False):
    """At least so many edits, some after the last mask; exhausted: a block that still changes when its rounds end."""
    def check(trace):
        blocks = [step for step in trace if step["forward"] == "block"]
        last = [step for step, after in zip(blocks, blocks[1:] + [None]) if after is None or after["block"] != step["block"]]
        return (sum(len(step["edits"]) for step in blocks) >= num_edits
                and any(step["edits"] and not step["commits"] for step in blocks)
                and exhausted == any(step["edits"] for step in last))
    return check


# LLaDA2.0: (name, prompt, gen_length, block_length, steps a block, threshold)
DYNAMIC = {
    "llada2-tiny": [("t0.95", 32, 32, 32, 32, 0.95), ("t0.95", 37, 40, 32, 32, 0.95), ("t0.95", 5, 20, 32, 12, 0.95),
                    ("t0.7", 20, 60, 32, 8, 0.7), ("t0.95", 19, 30, 8, 8, 0.95), ("t0.95", 16, 24, 8, 3, 0.95)],
    "llada2-one-group": [("t0.95", 40, 36, 32, 32, 0.95)],
}
# LLaDA2.1: (name, prompt, gen_length, block_length, threshold, editing_threshold, max_post_steps, num_to_transfer,
# whether a block's rounds end while it still changes)
EDITING = {
    "llada2-tiny": [("t0.95_e0.9", 35, 29, 32, 0.95, 0.9, 16, 1, False), ("t0.95_e0.9", 8, 40, 32, 0.95, 0.9, 16, 1, False),
                    ("t0.8_e0.8", 20, 44, 32, 0.8, 0.8, 16, 2, False), ("t0.7_e0.5", 32, 32, 32, 0.7, 0.5, 16, 2, True),
                    ("t0.5_e0.3_post1", 30, 30, 32, 0.5, 0.3, 1, 1, True),
                    ("t0.95_e0.9", 13, 35, 8, 0.95, 0.9, 16, 1, False), ("t0.7_e0.5_post2", 6, 26, 8, 0.7, 0.5, 2, 1, True)],
    "llada2-one-group": [],
}


def main():
    golden = Golden(sys.argv[1], "llada2")
    for name, about in MODELS.items():
        model = model_of(about)
        golden.checkpoint(name, model, tokenizer_config=tokenizer_config(about))
        mask, vocab = mask_of(about), about["vocab"]
        for length, block, inner in [(40, BLOCK, True), (70, BLOCK, False), (21, 8, False)][:3 if about["groups"] > 1 else 1]:
            ids = random_ids(vocab, length - 5, 7) + [mask] * 5
            assert not any(same_under_other_rule(model, ids, block, other) for other in (None, 1, 2 * block))
            golden.logits(f"{name}_t{length}_b{block}", name, model, ids, block, inner)
        ids = random_ids(vocab, 40, 8) + [mask] * 6
        moe = [f"model.layers.{i}.mlp." for i in range(about["dense"], about["layers"])]
        changes = {
            "bias": ({}, {layer + "gate.expert_bias": torch.zeros(about["experts"]) for layer in moe}),
            "scaling": ({"routed_scaling_factor": 1.0}, {}), "rotation": ({"partial_rotary_factor": 1.0}, {}),
            "shared experts": ({}, {layer + "shared_experts.down_proj.weight":
                                    torch.zeros(about["width"], about["expert"] * about["shared"]) for layer in moe})}
        if about["groups"] > 1:
            changes["groups"] = ({"topk_group": about["groups"]}, {})
        matters(model, ids, BLOCK, **changes)
        for seed, (case, prompt, gen, block, steps, threshold) in enumerate(DYNAMIC[name]):
            golden.trace(f"llada20_{case}_p{prompt}_g{gen}_b{block}_s{steps}", name, model, 1000 * (seed + 1), prompt, gen,
                         block, Dynamic(steps, threshold), mask, True, "low_confidence", "dynamic",
                         {"steps_per_block": steps, "quota_of": "block_length", "threshold": threshold},
                         took_more(-(-block // steps)))
        for seed, (case, prompt, gen, block, threshold, editing, post, transfer, exhausted) in enumerate(EDITING[name]):
            golden.trace(f"llada21_{case}_p{prompt}_g{gen}_b{block}", name, model, 20000 + 1000 * seed, prompt, gen, block,
                         Editing(threshold, editing, post, transfer), mask, True, "low_confidence", "editing",
                         {"threshold": threshold, "editing_threshold": editing, "max_post_steps": post,
                          "num_to_transfer": transfer}, edits(2, exhausted))


if __name__ == "__main__":
    main()
