"""A plain transformer, its parts by their published names: the forward of the reference scripts in this folder.

Written from public descriptions; nothing of the server is used, so that both can only agree by being right. Numbers
are read from the config by the keys that config.json has.
"""

import math

import torch


def rms_norm(x, weight, eps):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rotate(x, positions, theta, size):
    """x: [T, heads, head_dim]. The first `size` numbers of a head, halves against halves; the others pass."""
    half = size // 2
    angles = positions[:, None] / theta ** (torch.arange(half, dtype=torch.float64) / half)
    cosine, sine = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x[..., :half], x[..., half:size]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, x[..., size:]], -1)


def attend(q, k, v, allowed):
    """q: [T, heads, D], k and v: [K, KV heads, D], allowed: [T, K] or None. Returns [T, heads * D]."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(q.shape[0], -1)


class Model:
    """The Llama layout with norms of queries and keys. Families override what they do otherwise."""

    embedding, attention, attention_out = "embed_tokens", "self_attn", "o_proj"

    def __init__(self, config, tensors):
        self.config, self.tensors = config, tensors
        # The closest call of a router so far: how far the last chosen was from the first that was not.
        self.router_margin = math.inf

    def to(self, dtype):
        return type(self)(self.config, {name: tensor.to(dtype) for name, tensor in self.tensors.items()})

    def changed(self, config=(), tensors=()):
        """A copy with other numbers, to see that they matter."""
        return type(self)({**self.config, **dict(config)}, {**self.tensors, **dict(tensors)})

    def norm(self, name, x):
        return rms_norm(x, self.tensors[name + ".weight"], self.config["rms_norm_eps"])

    def product(self, name, x):
        return x @ self.tensors[name + ".weight"].T

    def head_size(self):
        config = self.config
        return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]

    def rotary_size(self):
        return self.head_size()

    def queries_keys_values(self, prefix, x):
        """Each [T, heads, head_dim], after their norms, before the rotation."""
        q, k, v = (self.product(f"{prefix}{name}_proj", x).view(len(x), -1, self.head_size()) for name in "qkv")
        return self.norm(prefix + "q_norm", q), self.norm(prefix + "k_norm", k), v

    def swiglu(self, prefix, x):
        gate, up = self.product(prefix + "gate_proj", x), self.product(prefix + "up_proj", x)
        return self.product(prefix + "down_proj", torch.nn.functional.silu(gate) * up)

    def route(self, prefix, x):
        """Weight of each expert for each row, [T, experts]; 0 where it is not chosen."""
        raise NotImplementedError

    def experts(self, prefix, x, seen=None):
        weights = self.route(prefix, x)
        if seen is not None:
            seen["weights"] = weights
        # Every expert on every row: slow and plain.
        outputs = torch.stack([self.swiglu(f"{prefix}experts.{e}.", x) for e in range(weights.shape[1])], 1)
        return (weights[..., None] * outputs).sum(1)

    def note_router(self, scores, count):
        """`scores` [..., candidates], of which the `count` highest are chosen."""
        ordered = scores.sort(-1, descending=True).values
        if count < ordered.shape[-1]:
            closest = (ordered[..., count - 1] - ordered[..., count]).min().item()
            self.router_margin = min(self.router_margin, closest)

    def is_moe(self, layer):
        return False

    def mlp(self, layer, prefix, x, router=None):
        return self.experts(prefix + "mlp.", x, router) if self.is_moe(layer) else self.swiglu(prefix + "mlp.", x)

    def forward(self, ids, block_length=None, begin=0, past=None, seen=None, routers=None):
        """Logits [T, V] of the rows of `ids` at positions `begin`, ..., and K and V of all positions up to them.

        block_length: rows see the keys of blocks up to their own, counted from position 0; None: all keys.
        past: K and V of the positions before `begin`. seen, routers: dicts that get inner tensors.
        """
        config = self.config
        positions = torch.arange(begin, begin + len(ids))
        allowed = None
        if block_length:
            allowed = torch.arange(begin + len(ids)) // block_length <= positions[:, None] // block_length
        x = self.tensors[f"model.{self.embedding}.weight"][torch.tensor(ids)]
        kept = []
        for i in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{i}."
            q, k, v = self.queries_keys_values(f"{prefix}{self.attention}.", self.norm(prefix + "input_layernorm", x))
            q, k = (rotate(part, positions.double(), config["rope_theta"], self.rotary_size()) for part in (q, k))
            if seen is not None:
                seen[f"layers.{i}.q_rope"], seen[f"layers.{i}.k_rope"] = q.transpose(0, 1), k.transpose(0, 1)
            if past is not None:
                k, v = torch.cat([past[i][0], k]), torch.cat([past[i][1], v])
            kept.append((k, v))
            x = x + self.product(f"{prefix}{self.attention}.{self.attention_out}", attend(q, k, v, allowed))
            router = {}
            x = x + self.mlp(i, prefix, self.norm(prefix + "post_attention_layernorm", x), router)
            if seen is not None:
                seen[f"layers.{i}.hidden"] = x
            if routers is not None and router:
                routers[f"layers.{i}.router_weights"] = router["weights"]
        head = f"model.{self.embedding}" if config["tie_word_embeddings"] else "lm_head"
        return self.product(head, self.norm("model.norm", x)), kept


class Maker:
    """Random weights from a seed, rounded to bfloat16: as a checkpoint stores them, and read back exactly."""

    def __init__(self, seed):
        self.random = torch.Generator().manual_seed(seed)
        self.tensors = {}

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.random)

    def put(self, name, tensor):
        self.tensors[name] = tensor.to(torch.bfloat16).to(torch.float32)

    def matrix(self, name, rows, columns, scale=1.5):
        self.put(name + ".weight", self.normal(rows, columns) * scale / math.sqrt(columns))

    def norm(self, name, size, about=1.0):
        self.put(name + ".weight", about * (1 + 0.1 * self.normal(size)))

    def swiglu(self, prefix, width, inner):
        self.matrix(prefix + "gate_proj", inner, width)
        self.matrix(prefix + "up_proj", inner, width)
        self.matrix(prefix + "down_proj", width, inner)

    def ends(self, embedding, vocab, width, tied, mask, head_scale):
        """Embedding, last norm and head. The mask token is not to be predicted: what to do then is another question."""
        if tied:
            self.matrix(f"model.{embedding}", vocab, width, head_scale)
        else:
            self.put(f"model.{embedding}.weight", self.normal(vocab, width))
            self.matrix("lm_head", vocab, width, head_scale)
        self.norm("model.norm", width)
        name = f"model.{embedding}.weight" if tied else "lm_head.weight"
        self.tensors[name][mask] *= 2 ** -4
