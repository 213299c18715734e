"""Writes golden folders: checkpoints, logits, traces, in the form that `golden_check` reads (README.md)."""

import json
import math
import pathlib
import struct

import torch

from decoding import MaskPredicted, decode

# Of every decision along a trace; float32 is off by some 1e-6.
LEAST_MARGINS = {"confidence_gap_rel": 1e-3, "token_logit_gap": 5e-3, "threshold_distance": 5e-4}
LEAST_ROUTER_MARGIN = 2e-5


def write_tensors(path, tensors, bfloat16=False):
    header, data = {}, b""
    for name, tensor in tensors.items():
        if bfloat16:
            raw = tensor.contiguous().to(torch.bfloat16).view(torch.int16).numpy().tobytes()
        else:
            raw = tensor.contiguous().to(torch.float32).numpy().tobytes()
        header[name] = {"dtype": "BF16" if bfloat16 else "F32", "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_json(path, value):
    path.write_text(json.dumps(value) + "\n")


def random_ids(vocab, length, seed):
    """The last 8 ids are special ones."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab - 8, (length,), generator=random).tolist()


def decisions(trace):
    return [[[commit[:2] for commit in step["commits"]], [edit[:2] for edit in step.get("edits", [])]] for step in trace]


def confidence_error(trace, exact):
    pairs = zip((c for step in trace for c in step["commits"]), (c for step in exact for c in step["commits"]))
    return max(abs(a[2] - b[2]) for a, b in pairs)


class Golden:
    """A golden folder of one family."""

    def __init__(self, out, family):
        self.out, self.family = pathlib.Path(out), family
        for folder in ("logits", "traces"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)

    def checkpoint(self, name, model, **json_files):
        """json_files: generation_config=..., tokenizer_config=... beside config.json."""
        folder = self.out / "checkpoints" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, value in {"config": model.config, **json_files}.items():
            write_json(folder / f"{file}.json", value)
        write_tensors(folder / "model.safetensors", model.tensors, bfloat16=True)

    def logits(self, name, checkpoint, model, ids, block_length, inner):
        """One forward of all rows. inner: with inner tensors, and the router's weights in a file of their own."""
        seen, routers = ({}, {}) if inner else (None, None)
        model.router_margin = math.inf
        logits = model.forward(ids, block_length, seen=seen, routers=routers)[0]
        assert model.router_margin > LEAST_ROUTER_MARGIN, f"{name}: a router decides by {model.router_margin}"
        error = (logits - model.to(torch.float64).forward(ids, block_length)[0]).abs().max().item()
        assert error < 5e-4, f"{name}: float32 is off by {error}"
        about = {"checkpoint": checkpoint, "family": self.family, "file": f"{name}.safetensors", "input_ids": ids,
                 "attention": "block_causal" if block_length else "full", "max_abs_error_vs_float64": float(f"{error:.2g}")}
        if block_length:
            about["block_length"] = block_length
        write_tensors(self.out / "logits" / f"{name}.safetensors", {"logits": logits, **(seen or {})})
        if routers:
            about["router_file"] = f"{name}.router.safetensors"
            write_tensors(self.out / "logits" / about["router_file"], routers)
        write_json(self.out / "logits" / f"{name}.json", about)

    def trace(self, name, checkpoint, model, seed, prompt_length, gen_length, block_length, rule, mask, block_causal,
              algorithm, schedule, params, wants=lambda trace: True):
        """Decodes prompts of growing seeds until one has clear decisions (and what `wants` asks for)."""
        for tried in range(200):
            prompt = random_ids(model.config["vocab_size"], prompt_length, seed + tried)
            model.router_margin = math.inf
            try:
                canvas, trace, margins = decode(model, prompt, gen_length, block_length, rule, mask, block_causal)
            except MaskPredicted:
                continue
            numbers = margins.numbers()
            if model.router_margin != math.inf:
                numbers["router_score_gap"] = float(f"{model.router_margin:.3g}")
            clear = all(numbers[key] is None or numbers[key] > least for key, least in LEAST_MARGINS.items())
            if clear and model.router_margin > LEAST_ROUTER_MARGIN and wants(trace):
                break
        else:
            raise SystemExit(f"{name}: no prompt with clear decisions")
        exact = decode(model.to(torch.float64), prompt, gen_length, block_length, rule, mask, block_causal, cached=False)
        assert (canvas, decisions(trace)) == (exact[0], decisions(exact[1])), f"{name}: decided by rounding"
        error = confidence_error(trace, exact[1])
        assert error < 5e-5, f"{name}: a confidence is off by {error}"
        num_blocks = -(-len(canvas) // block_length) - len(prompt) // block_length if block_causal \
            else gen_length // block_length
        if "steps_per_block" in params:
            params = {**params, "steps": params["steps_per_block"] * num_blocks}
        else:
            params = {**params, "steps": gen_length}
        write_json(self.out / "traces" / f"{name}.json", {
            "name": name, "family": self.family, "checkpoint": checkpoint, "algorithm": algorithm, "schedule": schedule,
            "cache": "none", "attention": "block_causal" if block_causal else "full",
            "params": {"gen_length": gen_length, "block_length": block_length, **params, "mask_id": mask},
            "prompt_ids": prompt, "output_ids": canvas, "num_forwards": len(trace),
            "num_denoising_forwards": sum(step["forward"] in ("block", "full") for step in trace),
            "margins": numbers, "confidence_error_vs_float64": float(f"{error:.2g}"), "steps": trace})
        confidences = [c[2] for step in trace for c in step["commits"]]
        print(f"{name}: prompt {tried}, {len(trace)} forwards, confidences {min(confidences):.2f} to "
              f"{max(confidences):.2f}, {numbers}")


def matters(model, ids, block_length, least=0.05, **changes):
    """Fails unless each change (a dict of config keys and one of tensors) moves some logit: the data must show it."""
    logits = model.forward(ids, block_length)[0]
    for name, (config, tensors) in changes.items():
        moved = (model.changed(config, tensors).forward(ids, block_length)[0] - logits).abs().max().item()
        assert moved > least, f"{name} moves no logit by more than {moved}"


def same_under_other_rule(model, ids, block_length, other):
    """Whether logits hide which of two attention rules made them."""
    return (model.forward(ids, block_length)[0] - model.forward(ids, other)[0]).abs().max().item() < 0.05
