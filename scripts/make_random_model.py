#!/usr/bin/env python3
"""A model folder of LLaDA-8B's shape with random weights, for measuring speed; needs torch.

    scripts/make_random_model.py /tmp/random-llada-8b
    scripts/make_random_model.py /tmp/small --layers 8 --width 512

What a forward costs does not depend on the values of the weights, so no download is needed to
measure it. The text that comes out is noise and never ends: the end token's logit is always 0, far
below the greatest of so many. The tokenizer is that of models/demo, whose 2,048 ids are ids of the
larger vocabulary too. Weights: normal with deviation 0.02, in bfloat16, made on the GPU where there
is one (other values than on a CPU with the same seed); weights of norms are 1.
"""

import argparse
import json
import pathlib
import shutil
import sys

import torch

DEMO = pathlib.Path(__file__).resolve().parent.parent / "models" / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
HEAD = "model.transformer.ff_out.weight"
DEVIATION = 0.02
SHARD_BYTES = 4 << 30
BYTES_PER_WEIGHT = 2


def make_config(args):
    """config.json of GSAI-ML/LLaDA-8B with these sizes; special ids as far from the end as there."""
    return {
        "activation_type": "silu",
        "alibi": False,
        "architectures": ["LLaDAModelLM"],
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": args.width,
        "embedding_size": args.vocab,
        "eos_token_id": args.vocab - 383,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": args.vocab - 128,
        "max_sequence_length": 4096,
        "mlp_hidden_size": args.mlp_width or 3 * args.width,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": args.heads or max(1, args.width // 128),
        "n_kv_heads": args.heads or max(1, args.width // 128),
        "n_layers": args.layers,
        "pad_token_id": args.vocab - 383,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "torch_dtype": "bfloat16",
        "vocab_size": args.vocab,
        "weight_tying": False,
    }


def tensor_shapes(config):
    """(name, shape) of every tensor, in the order of the forward."""
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
    yield HEAD, (config["embedding_size"], width)


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
    done, weight_map = 0, {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with open(folder / file_name, "wb") as file:
            file.write(safetensors_header(shard))
            for name, shape in shard:
                weights = random_weights(shape, generator, device)
                if name == HEAD:
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
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--heads", type=int, help="default: heads of 128")
    parser.add_argument("--mlp-width", type=int, help="default: 3 times the width")
    parser.add_argument("--vocab", type=int, default=126464, help="at least 2,560")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.layers < 1 or args.width < 2 or args.vocab < 2560:
        parser.error("--layers starts at 1, --width at 2, --vocab at 2560")
    return args


def main():
    args = parse_args()
    config = make_config(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    if list(args.folder.glob("*.safetensors")):
        sys.exit(f"make_random_model: {args.folder} holds weights already")
    (args.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": config["eos_token_id"], "gen_length": 256, "block_length": 32}
    (args.folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        shutil.copy(DEMO / name, args.folder / name)
    write_weights(args.folder, split_shards(tensor_shapes(config)), config["eos_token_id"], args.seed)


if __name__ == "__main__":
    main()
