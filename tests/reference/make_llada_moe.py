#!/usr/bin/env python3
"""Golden data of LLaDA-MoE: make_llada_moe.py OUT

Llama's layers with norms of query and key heads, full attention, experts. Order of operations, config keys and tensor
names from LLaDA-MoE's configuration and model files as ZHZisZZ/dllm (pipelines/llada/models/*_lladamoe.py) and
inclusionAI/dInfer (tools/configuration_lladamoe.py) carry them:
  * norms of query and key heads, then q, k and v cut at +-`clip_qkv` if that is set, then the rotation;
  * router: softmax in float32, plus `mlp.expert_bias` if `moe_router_enable_expert_bias`, then the best
    `num_experts_per_tok` with these sums as weights, never divided by their sum (`norm_topk_prob` has no effect);
  * `moe_layer_freq[i]` 0: a dense MLP of `dense_intermediate_size`;
  * `shared_expert_intermediate_size`, if not null: `shared_expert` beside `mlp`, in layers with experts, added.
Decoding: LLaDA's fixed quota, Fast-dLLM's threshold, and d3LLM's several blocks at once (hao-ai-lab/d3LLM,
generate_multi_block of d3llm_llada_generate_util.py and _sample_multi_block of d3llm_dream_generate_util.py).
"""

import sys

import torch

from decoding import MultiBlock, Quota, Threshold
from golden_files import Golden, matters, random_ids, same_under_other_rule
from transformer import Maker, Model

MODELS = {
    # As the published 7B-A1B: no shared expert, no bias, no clipping.
    "llada-moe-tiny": dict(seed=90, layers=3, width=36, heads=3, kv_heads=3, dense=60, expert=16, shared=None, vocab=112,
                           experts=8, top=2, freq=[0, 1, 1], bias=False, clip=None),
    # All that the configuration has.
    "llada-moe-all": dict(seed=91, layers=3, width=32, heads=4, kv_heads=2, dense=48, expert=12, shared=20, vocab=96,
                          experts=6, top=3, freq=[1, 0, 1], bias=True, clip=1.25),
}


class LladaMoe(Model):
    def is_moe(self, layer):
        return self.config["moe_layer_freq"][layer] != 0

    def queries_keys_values(self, prefix, x):
        parts = super().queries_keys_values(prefix, x)
        clip = self.config["clip_qkv"]
        return parts if clip is None else tuple(part.clamp(-clip, clip) for part in parts)

    def route(self, prefix, x):
        shares = self.product(prefix + "gate", x).softmax(-1)
        if self.config["moe_router_enable_expert_bias"]:
            shares = shares + self.tensors[prefix + "expert_bias"]
        self.note_router(shares, self.config["num_experts_per_tok"])
        best, which = shares.topk(self.config["num_experts_per_tok"], -1)
        return torch.zeros_like(shares).scatter(-1, which, best)

    def mlp(self, layer, prefix, x, router=None):
        result = super().mlp(layer, prefix, x, router)
        if self.is_moe(layer) and self.config["shared_expert_intermediate_size"] is not None:
            result = result + self.swiglu(prefix + "shared_expert.", x)
        return result


def mask_of(about):
    return about["vocab"] - 2


def config_of(about):
    eos = about["vocab"] - 5
    return {
        "architectures": ["LLaDAMoEModelLM"], "model_type": "llada", "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": None, "clip_qkv": about["clip"], "dense_intermediate_size": about["dense"], "eos_token_id": eos,
        "expert_intermediate_size": about["expert"], "hidden_act": "silu", "hidden_size": about["width"],
        "initializer_range": 0.02, "max_position_embeddings": 512, "moe_layer_freq": about["freq"],
        "moe_router_enable_expert_bias": about["bias"], "moe_router_score_function": "softmax", "norm_topk_prob": None,
        "num_attention_heads": about["heads"], "num_experts": about["experts"], "num_experts_per_tok": about["top"],
        "num_hidden_layers": about["layers"], "num_key_value_heads": about["kv_heads"], "output_router_logits": False,
        "pad_token_id": eos, "partial_rotary_factor": 1, "qk_layernorm": True, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "rope_theta": 50000, "routed_scaling_factor": 1, "router_aux_loss_coef": 0.01,
        "router_num_group": None, "router_topk_group": None, "shared_expert_intermediate_size": about["shared"],
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": False, "vocab_size": about["vocab"]}


def model_of(about):
    make, d = Maker(about["seed"]), about["width"]
    head = d // about["heads"]
    make.ends("embed_tokens", about["vocab"], d, False, mask_of(about), 4.0)
    model = LladaMoe(config_of(about), make.tensors)
    for i in range(about["layers"]):
        prefix = f"model.layers.{i}."
        make.norm(prefix + "input_layernorm", d)
        make.norm(prefix + "post_attention_layernorm", d)
        for name, heads in (("q", about["heads"]), ("k", about["kv_heads"]), ("v", about["kv_heads"])):
            make.matrix(f"{prefix}self_attn.{name}_proj", heads * head, d)
        make.matrix(prefix + "self_attn.o_proj", d, d)
        # Far from 1: a forward that leaves these norms out is far off.
        make.norm(prefix + "self_attn.q_norm", head, 1.3)
        make.norm(prefix + "self_attn.k_norm", head, 0.8)
        if not model.is_moe(i):
            make.swiglu(prefix + "mlp.", d, about["dense"])
            continue
        make.matrix(prefix + "mlp.gate", about["experts"], d, 2.0)
        if about["bias"]:
            make.put(prefix + "mlp.expert_bias", 0.15 * make.normal(about["experts"]))
        for e in range(about["experts"]):
            make.swiglu(f"{prefix}mlp.experts.{e}.", d, about["expert"])
        if about["shared"] is not None:
            make.swiglu(prefix + "shared_expert.", d, about["shared"])
    return model


def tokenizer_config(about):
    """No key of config.json names the mask."""
    return {"added_tokens_decoder": {str(mask_of(about)): {"content": "<|mask|>", "special": True},
                                     str(about["vocab"] - 5): {"content": "<|endoftext|>", "special": True}}}


# (name, prompt, gen_length, block_length, steps a block, threshold)
CASES = {
    "llada-moe-tiny": [
        ("lowconf", 12, 32, 32, 32, None), ("lowconf", 7, 32, 8, 4, None), ("lowconf_uneven", 15, 24, 12, 5, None),
        ("lowconf", 1, 16, 16, 16, None), ("threshold0.8", 10, 32, 16, None, 0.8), ("threshold0.5", 5, 32, 32, None, 0.5)],
    "llada-moe-all": [
        ("lowconf", 9, 24, 8, 8, None), ("lowconf_uneven", 20, 32, 16, 6, None), ("threshold0.8", 13, 32, 16, None, 0.8)],
}


# (name, prompt, gen_length, block_length, entropy_threshold, block_add_threshold, takes_best, early_stop)
MULTI_BLOCK = [
    ("multi_block", 11, 32, 8, 1.0, 0.1, True, False), ("multi_block_uneven", 6, 24, 7, 1.5, 0.5, True, False),
    ("multi_block_dream", 9, 32, 8, 0.7, 0.1, False, False), ("multi_block_stop", 8, 32, 8, 1.0, 0.25, True, True)]


def blocks_of(step, prompt, block):
    return {(position - prompt) // block for position, _, _ in step["commits"]}


def took_more(trace):
    """Steps of one position, and of several by the threshold."""
    sizes = [len(step["commits"]) for step in trace]
    return max(sizes) > 1 and sizes.count(1) > 1


def main():
    golden = Golden(sys.argv[1], "llada-moe")
    for name, about in MODELS.items():
        model = model_of(about)
        golden.checkpoint(name, model, tokenizer_config=tokenizer_config(about))
        ids = random_ids(about["vocab"], 13, 7) + [mask_of(about)] * 5
        assert not same_under_other_rule(model, ids, None, 4)
        golden.logits(f"{name}_t{len(ids)}", name, model, ids, None, inner=True)
        changes = {"experts_a_token": ({"num_experts_per_tok": about["top"] + 1}, {})}
        if about["bias"]:
            changes["bias"] = ({"moe_router_enable_expert_bias": False}, {})
        if about["clip"]:
            changes["clipping"] = ({"clip_qkv": None}, {})
        if about["shared"]:
            changes["shared expert"] = ({"shared_expert_intermediate_size": None}, {})
        matters(model, ids, None, **changes)
        for seed, (case, prompt, gen, block, steps, threshold) in enumerate(CASES[name]):
            is_quota = threshold is None
            params = {"steps_per_block": steps, "quota_of": "masks"} if is_quota else {"threshold": threshold}
            golden.trace(f"llada_moe_{case}_p{prompt}_g{gen}_b{block}" + (f"_s{steps}" if is_quota else ""), name, model,
                         1000 * (seed + 1), prompt, gen, block,
                         Quota(steps, of_length=False) if is_quota else Threshold(threshold), mask_of(about), False,
                         "low_confidence", "quota" if is_quota else "threshold", params,
                         (lambda trace: True) if is_quota else took_more)
        for seed, (case, prompt, gen, block, threshold, add, takes_best, early_stop) in enumerate(MULTI_BLOCK):
            if early_stop and about["bias"]:
                continue  # this model ends no text that it decodes
            # Of early_stop: an end that leaves masks before it, so that what lies behind it matters.
            wants = lambda trace: (any(len(blocks_of(step, prompt, block)) > 1 for step in trace)
                                   and early_stop == any(row[1] == about["vocab"] - 5 for step in trace[:-1]
                                                         for row in step["commits"]))
            golden.trace(f"llada_moe_{case}_p{prompt}_g{gen}_b{block}_{name[10:]}", name, model, 7000 * (seed + 1), prompt,
                         gen, block, MultiBlock(threshold, add, takes_best, about["vocab"] - 5 if early_stop else None),
                         mask_of(about), False, "low_confidence", "multi_block",
                         {"entropy_threshold": threshold, "block_add_threshold": add, "takes_best": takes_best,
                          "early_stop": early_stop}, wants)


if __name__ == "__main__":
    main()
