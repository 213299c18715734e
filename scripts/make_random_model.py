#!/usr/bin/env python3
"""A model folder of a published model's shape with random weights, for measuring speed; needs torch.

    scripts/make_random_model.py /tmp/random-llada-8b
    scripts/make_random_model.py /tmp/small --layers 8 --width 512
    scripts/make_random_model.py /tmp/random-sdar-8b --shape sdar-8b

What a forward costs does not depend on the values of the weights, so no download is needed to
measure it. The text that comes out is noise and never ends: the end token's logit is always 0, far
below the greatest of so many. The tokenizer is that of models/demo, whose 2,048 ids are ids of the
larger vocabulary too. Weights: normal with deviation 0.02, in bfloat16, made on the GPU where there
is one (other values than on a CPU with the same seed); weights of norms are 1. Sizes are those of
the models' config.json files; those of LLaDA-MoE's experts are of its description.
"""

import argparse
import json
import pathlib
import shutil
import sys

try:
    import torch
except ImportError as missing:
    sys.exit(f"make_random_model: {missing}: run it with .venv/bin/python")

DEMO = pathlib.Path(__file__).resolve().parent.parent / "models" / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
DEVIATION = 0.02
SHARD_BYTES = 4 << 30
BYTES_PER_WEIGHT = 2


def llada_config(args):
    """GSAI-ML/LLaDA-8B; special ids as far from the end as there."""
    width = args.width or 4096
    vocab = args.vocab or 126464
    return {
        "activation_type": "silu",
        "alibi": False,
        "architectures": ["LLaDAModelLM"],
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": width,
        "embedding_size": vocab,
        "eos_token_id": vocab - 383,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": vocab - 128,
        "max_sequence_length": 4096,
        "mlp_hidden_size": args.mlp_width or 3 * width,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": args.heads or max(1, width // 128),
        "n_kv_heads": args.heads or max(1, width // 128),
        "n_layers": args.layers or 32,
        "pad_token_id": vocab - 383,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
        "weight_tying": False,
    }


def llada_shapes(config):
    """(name, shape) of every tensor, in the order of the forward; the head last."""
    width, mlp, top = config["d_model"], config["mlp_hidden_size"], "model.transformer."
    yield top + "wte.weight", (config["embedding_size"], width)
    for layer in range(config["n_layers"]):
        block = f"{top}blocks.{layer}."
        yield block + "attn_norm.weight", (width,)
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            yield f"{block}{name}.weight", (width, width)
        yield block + "ff_norm.weight", (width,)
        yield block + "ff_proj.weight", (mlp, width)
        yield block + "up_proj.weight", (mlp, width)
        yield block + "ff_out.weight", (width, mlp)
    yield top + "ln_f.weight", (width,)
    yield top + "ff_out.weight", (config["embedding_size"], width)


# Shape: sizes in Qwen's words, and what else the family's config.json says.
QWEN_SHAPES = {
    "dream-7b": {"num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
                 "intermediate_size": 18944, "vocab_size": 152064, "model_type": "Dream", "rope_theta": 1e6},
    "sdar-8b": {"num_hidden_layers": 36, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
                "intermediate_size": 12288, "vocab_size": 151936, "model_type": "sdar", "rope_theta": 1e6,
                "block_size": 4},
    "llada-moe-7b": {"num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 16,
                     "num_key_value_heads": 16, "dense_intermediate_size": 8192, "vocab_size": 157184,
                     "model_type": "llada", "rope_theta": 50000, "num_experts": 64, "num_experts_per_tok": 8,
                     "expert_intermediate_size": 1024, "qk_layernorm": True},
    "llada2-mini": {"num_hidden_layers": 20, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4,
                    "head_dim": 128, "intermediate_size": 5120, "vocab_size": 157184, "model_type": "llada2_moe",
                    "rope_theta": 600000, "partial_rotary_factor": 0.5, "num_experts": 256, "num_experts_per_tok": 8,
                    "moe_intermediate_size": 512, "num_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 8,
                    "topk_group": 4, "routed_scaling_factor": 2.5, "moe_router_enable_expert_bias": True},
}


def qwen_config(args):
    config = dict(QWEN_SHAPES[args.shape], hidden_act="silu", max_position_embeddings=8192, rms_norm_eps=1e-6,
                  tie_word_embeddings=False, torch_dtype="bfloat16")
    for key, value in (("num_hidden_layers", args.layers), ("hidden_size", args.width),
                       ("num_attention_heads", args.heads), ("vocab_size", args.vocab)):
        config[key] = value or config[key]
    if args.heads:
        config["num_key_value_heads"] = min(args.heads, config["num_key_value_heads"])
    config["mask_token_id"] = config["vocab_size"] - 289
    config["eos_token_id"] = config["vocab_size"] - 292
    if config["model_type"] == "llada":
        config["moe_layer_freq"] = [1] * config["num_hidden_layers"]
    return config


def swiglu(prefix, width, mlp):
    yield prefix + "gate_proj.weight", (mlp, width)
    yield prefix + "up_proj.weight", (mlp, width)
    yield prefix + "down_proj.weight", (width, mlp)


def qwen_attention(config, layer):
    width, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads, size = config["num_key_value_heads"], config.get("head_dim", width // heads)
    attention = f"{layer}self_attn."
    if config["model_type"] == "llada2_moe":
        attention = f"{layer}attention."
        yield attention + "query_key_value.weight", ((heads + 2 * kv_heads) * size, width)
        yield attention + "query_layernorm.weight", (size,)
        yield attention + "key_layernorm.weight", (size,)
        yield attention + "dense.weight", (width, heads * size)
        return
    for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        yield f"{attention}{name}_proj.weight", (count * size, width)
        if config["model_type"] == "Dream":
            yield f"{attention}{name}_proj.bias", (count * size,)
    if config["model_type"] != "Dream":
        yield attention + "q_norm.weight", (size,)
        yield attention + "k_norm.weight", (size,)
    yield attention + "o_proj.weight", (width, heads * size)


def qwen_shapes(config):
    width, vocab = config["hidden_size"], config["vocab_size"]
    is_llada2 = config["model_type"] == "llada2_moe"
    expert = config.get("moe_intermediate_size") or config.get("expert_intermediate_size")
    yield f"model.{'word_embeddings' if is_llada2 else 'embed_tokens'}.weight", (vocab, width)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (width,)
        yield from qwen_attention(config, layer)
        yield layer + "post_attention_layernorm.weight", (width,)
        if not expert or i < config.get("first_k_dense_replace", 0):
            yield from swiglu(layer + "mlp.", width, config["intermediate_size"])
            continue
        yield layer + "mlp.gate.weight", (config["num_experts"], width)
        if config.get("moe_router_enable_expert_bias"):
            yield layer + "mlp.gate.expert_bias", (config["num_experts"],)
        if config.get("num_shared_experts"):
            yield from swiglu(layer + "mlp.shared_experts.", width, expert * config["num_shared_experts"])
        for e in range(config["num_experts"]):
            yield from swiglu(f"{layer}mlp.experts.{e}.", width, expert)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (vocab, width)


def num_bytes(shape):
    return BYTES_PER_WEIGHT * torch.Size(shape).numel()


def split_shards(tensors):
    """Lists of (name, shape), none larger than SHARD_BYTES unless it is a single tensor."""
    shards, size = [[]], 0
    for name, shape in tensors:
        if shards[-1] and size + num_bytes(shape) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += num_bytes(shape)
    return shards


def safetensors_header(shard):
    """The length and the JSON that stand before the data, padded to 8 bytes."""
    header, begin = {}, 0
    for name, shape in shard:
        end = begin + num_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def random_weights(shape, generator, device):
    weights = torch.empty(shape, dtype=torch.bfloat16, device=device)
    if len(shape) == 1:
        return weights.fill_(1)
    return weights.normal_(0, DEVIATION, generator=generator)


def write_weights(folder, shards, end_token, seed):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    total = sum(num_bytes(shape) for shard in shards for _, shape in shard)
    head = shards[-1][-1][0]
    done, weight_map = 0, {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with open(folder / file_name, "wb") as file:
            file.write(safetensors_header(shard))
            for name, shape in shard:
                weights = random_weights(shape, generator, device)
                if name == head:
                    weights[end_token] = 0
                file.write(memoryview(weights.view(torch.uint8).cpu().numpy()).cast("B"))
                weight_map[name] = file_name
                done += num_bytes(shape)
                if sys.stderr.isatty():
                    print(f"\r{done / 1e9:.1f} of {total / 1e9:.1f} GB", end="", file=sys.stderr)
        if not sys.stderr.isatty():
            print(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="where the model goes")
    parser.add_argument("--shape", choices=["llada-8b", *QWEN_SHAPES], default="llada-8b")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--width", type=int, help="instead of the shape's")
    parser.add_argument("--heads", type=int, help="instead of the shape's; llada-8b: heads of 128")
    parser.add_argument("--mlp-width", type=int, help="of llada-8b; 3 times the width")
    parser.add_argument("--vocab", type=int, help="instead of the shape's; at least 2,560")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, least in (("layers", 1), ("width", 2), ("heads", 1), ("mlp_width", 1), ("vocab", 2560)):
        if (value := getattr(args, name)) is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} starts at {least}")
    return args


def main():
    args = parse_args()
    is_llada = args.shape == "llada-8b"
    config = llada_config(args) if is_llada else qwen_config(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    if list(args.folder.glob("*.safetensors")):
        sys.exit(f"make_random_model: {args.folder} holds weights already")
    (args.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": config["eos_token_id"], "gen_length": 256}
    if "block_size" not in config:
        generation["block_length"] = 32
    (args.folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        shutil.copy(DEMO / name, args.folder / name)
    shapes = llada_shapes(config) if is_llada else qwen_shapes(config)
    write_weights(args.folder, split_shards(shapes), config["eos_token_id"], args.seed)


if __name__ == "__main__":
    main()
