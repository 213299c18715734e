#!/usr/bin/env python3
"""Golden data of SDAR-MoE: make_sdar_moe.py OUT

SDAR's attention and decoding (make_sdar.py) with Qwen3-MoE's experts: softmax over all in float32, the best
`num_experts_per_tok`, their weights divided by their sum where `norm_topk_prob` says so. Layer i has experts unless it
is in `mlp_only_layers` or (i + 1) is no multiple of `decoder_sparse_step`; the others have a dense MLP of
`intermediate_size`. Sources: Qwen3-MoE's configuration and model in huggingface transformers, Labman42/JetEngine
models/sdar_moe.py (which always divides). SDAR-30B-A3B's own config.json was not at hand.
"""

import sys

import torch

import make_sdar
from golden_files import Golden, matters
from transformer import Maker, Model

MODELS = {
    "sdar-moe-tiny": dict(seed=80, layers=3, width=32, heads=4, kv_heads=2, head_dim=12, mlp=48, vocab=104, tied=False,
                          block_size=4, head_scale=3.5, complete=True, experts=8, top=2, expert_mlp=16, norm=True,
                          dense=[], sparse_step=1),
    # Layers 1 and 3 have experts by the step, and 3 is excepted; weights are not divided by their sum.
    "sdar-moe-mixed": dict(seed=81, layers=4, width=32, heads=2, kv_heads=2, head_dim=16, mlp=40, vocab=96, tied=True,
                           block_size=8, head_scale=3.5, complete=False, experts=6, top=3, expert_mlp=12, norm=False,
                           dense=[3], sparse_step=2),
}


class SdarMoe(Model):
    def is_moe(self, layer):
        config = self.config
        return layer not in config["mlp_only_layers"] and (layer + 1) % config["decoder_sparse_step"] == 0

    def route(self, prefix, x):
        shares = self.product(prefix + "gate", x).softmax(-1)
        self.note_router(shares, self.config["num_experts_per_tok"])
        best, which = shares.topk(self.config["num_experts_per_tok"], -1)
        if self.config["norm_topk_prob"]:
            best = best / best.sum(-1, keepdim=True)
        return torch.zeros_like(shares).scatter(-1, which, best)


def config_of(about):
    config = make_sdar.config_of(about)
    config |= {"architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe", "num_experts": about["experts"],
               "num_experts_per_tok": about["top"], "moe_intermediate_size": about["expert_mlp"],
               "norm_topk_prob": about["norm"], "mlp_only_layers": about["dense"],
               "decoder_sparse_step": about["sparse_step"], "router_aux_loss_coef": 0.001,
               "output_router_logits": False}
    return config


def model_of(about):
    make = Maker(about["seed"])
    make.ends("embed_tokens", about["vocab"], about["width"], about["tied"], make_sdar.mask_of(about),
              about["head_scale"])
    model = SdarMoe(config_of(about), make.tensors)
    for i in range(about["layers"]):
        prefix = f"model.layers.{i}."
        make_sdar.put_attention(make, prefix, about)
        if not model.is_moe(i):
            make.swiglu(prefix + "mlp.", about["width"], about["mlp"])
            continue
        make.matrix(prefix + "mlp.gate", about["experts"], about["width"], 2.0)
        for e in range(about["experts"]):
            make.swiglu(f"{prefix}mlp.experts.{e}.", about["width"], about["expert_mlp"])
    return model


CASES = {
    "sdar-moe-tiny": [
        ("static", 12, 16, 4, None), ("static", 9, 13, 4, None), ("static_tail", 6, 14, 3, None),
        ("dynamic0.85", 8, 24, 4, 0.85), ("dynamic0.85", 11, 25, 2, 0.85)],
    "sdar-moe-mixed": [
        ("static", 16, 24, 8, None), ("dynamic0.85", 5, 35, 8, 0.85)],
}


def main():
    golden = Golden(sys.argv[1], "sdar")
    for name, about in MODELS.items():
        model = model_of(about)
        files = {"generation_config": make_sdar.generation_config(about)}
        if not about["complete"]:
            files["tokenizer_config"] = make_sdar.tokenizer_config(about)
        golden.checkpoint(name, model, **files)
        ids = make_sdar.write_logits(golden, name, about, model)
        matters(model, ids, about["block_size"], division=({"norm_topk_prob": not about["norm"]}, {}),
                experts_a_token=({"num_experts_per_tok": about["top"] + 1}, {}))
        make_sdar.write_traces(golden, name, about, model, "sdar_moe", CASES[name])


if __name__ == "__main__":
    main()
