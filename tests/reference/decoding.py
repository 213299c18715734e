"""Plain decoding loops at temperature 0, with the margins of their decisions.

`decode` runs the blocks of a canvas one after the other. A rule says what a forward decides:
  Quota       a fixed number of positions a step, the most confident first (LLaDA, SDAR "static")
  Threshold   the most confident always, others with confidence >= threshold (Fast-dLLM)
  Dynamic     all with confidence > threshold if they are at least the quota, else the quota (SDAR, LLaDA2.0)
  MultiBlock  all with entropy <= threshold, in several blocks at once (d3LLM)
  Editing     Dynamic with a quota of `num_to_transfer`, and edits of what is decided (LLaDA2.1)
"""

import itertools
import math


class Margins:
    """How far every decision was from flipping."""

    def __init__(self):
        self.confidence_gap_rel = self.token_logit_gap = self.threshold_distance = math.inf

    def choice(self, chosen, rejected):
        if chosen and rejected:
            lowest = min(row.confidence for row in chosen)
            gap = (lowest - max(row.confidence for row in rejected)) / lowest
            self.confidence_gap_rel = min(self.confidence_gap_rel, gap)

    def entropies(self, rows, threshold):
        for row in rows:
            self.threshold_distance = min(self.threshold_distance, abs(row.entropy - threshold))

    def lowest_entropy(self, rows):
        ordered = sorted(row.entropy for row in rows)
        if len(ordered) > 1:
            self.confidence_gap_rel = min(self.confidence_gap_rel, (ordered[1] - ordered[0]) / ordered[1])

    def token(self, row):
        self.token_logit_gap = min(self.token_logit_gap, row.logit_gap)

    def threshold(self, rows, threshold):
        for row in rows:
            self.threshold_distance = min(self.threshold_distance, abs(row.confidence - threshold))

    def numbers(self):
        return {name: None if value == math.inf else float(f"{value:.3g}") for name, value in vars(self).items()}


class Row:
    """What the model says of a position."""

    def __init__(self, position, logits):
        best = logits.topk(2).values
        self.position, self.token = position, logits.argmax().item()
        self.logit_gap = (best[0] - best[1]).item()
        shares = logits.softmax(-1)
        self.confidence = shares.max().item()
        self.entropy = -(shares * (shares + 1e-12).log()).sum().item()


def best_first(rows):
    return sorted(rows, key=lambda row: (-row.confidence, row.position))


def share(total, steps, step):
    """`total` over `steps`, the remainder on the first ones."""
    return total // steps + (step < total % steps)


class Quota:
    """steps: of a block. of_length: the quotas share out the block's length (SDAR), else its masks (LLaDA)."""

    def __init__(self, steps, of_length):
        self.steps, self.of_length = steps, of_length

    def quota(self, step, block_length, num_masks):
        return share(block_length if self.of_length else num_masks, self.steps, step)

    def choose(self, rows, quota, margins):
        ordered = best_first(rows)
        # At most what is masked: SDAR's own topk goes on to decided positions.
        margins.choice(ordered[:quota], ordered[quota:])
        return ordered[:quota]


class Dynamic(Quota):
    def __init__(self, steps, threshold):
        super().__init__(steps, True)
        self.threshold = threshold

    def choose(self, rows, quota, margins):
        margins.threshold(rows, self.threshold)
        above = [row for row in rows if row.confidence > self.threshold]
        return above if len(above) >= quota else super().choose(rows, quota, margins)


class Threshold:
    def __init__(self, threshold):
        self.threshold = threshold

    def quota(self, step, block_length, num_masks):
        return 1

    def choose(self, rows, quota, margins):
        margins.threshold(rows, self.threshold)
        above = [row for row in rows if row.confidence >= self.threshold]
        if above:
            return above
        ordered = best_first(rows)
        margins.choice(ordered[:1], ordered[1:])
        return ordered[:1]


class Editing(Dynamic):
    def __init__(self, threshold, editing_threshold, max_post_steps, num_to_transfer=1):
        super().__init__(1, threshold)
        self.editing_threshold, self.max_post_steps = editing_threshold, max_post_steps
        self.num_to_transfer = num_to_transfer

    def quota(self, step, block_length, num_masks):
        return self.num_to_transfer

    def edits(self, rows, canvas, margins):
        changed = []
        for row in rows:
            # Which token is first matters only to one that could pass.
            if row.confidence > self.editing_threshold - 0.01:
                margins.token(row)
            if row.token != canvas[row.position]:
                margins.threshold([row], self.editing_threshold)
                if row.confidence > self.editing_threshold:
                    changed.append(row)
        return changed


class MultiBlock:
    """d3LLM without its caches. A block opens, one a forward, when `add_at` of the last open one is decided.

    takes_best: as its loop for LLaDA, the most certain of all open positions is decided always; else, as its loop for
    Dream, only where the first open block would get nothing. end: a token that ends the text; what follows the first
    one is set to it. None: there is none.
    """

    def __init__(self, threshold, add_at, takes_best=True, end=None):
        self.threshold, self.add_at, self.takes_best, self.end = threshold, add_at, takes_best, end

    def choose(self, rows, first_block, margins):
        margins.entropies(rows, self.threshold)
        chosen = {row.position: row for row in rows if row.entropy <= self.threshold}
        if self.takes_best and not chosen:
            margins.lowest_entropy(rows)
            best = min(rows, key=lambda row: (row.entropy, row.position))
            chosen[best.position] = best
        if not any(row.position in chosen for row in first_block):
            margins.lowest_entropy(first_block)
            best = min(first_block, key=lambda row: (row.entropy, row.position))
            chosen[best.position] = best
        return [chosen[position] for position in sorted(chosen)]


def decode_multi_block(model, prompt, gen_length, block_length, rule, mask):
    """As `decode` gives it: all rows in every forward."""
    length = len(prompt) + gen_length
    canvas, masked = list(prompt) + [mask] * gen_length, [False] * len(prompt) + [True] * gen_length
    starts = list(range(len(prompt), length, block_length))
    trace, margins, num_open = [], Margins(), 1
    ends = lambda i: min(starts[i] + block_length, length)
    left = lambda i: sum(masked[starts[i]:ends(i)])
    while any(masked):
        size = ends(num_open - 1) - starts[num_open - 1]
        decided = size - left(num_open - 1)
        if num_open < len(starts) and (decided / size >= rule.add_at or decided == size):
            num_open += 1
        logits = model.forward(canvas)[0]
        rows = [Row(p, logits[p]) for p in range(len(prompt), ends(num_open - 1)) if masked[p]]
        first = next(i for i in range(num_open) if left(i))
        chosen = rule.choose(rows, [row for row in rows if row.position < ends(first)], margins)
        for row in chosen:
            margins.token(row)
            if row.token == mask:
                raise MaskPredicted
            canvas[row.position], masked[row.position] = row.token, False
        trace.append({"step": len(trace), "block": first, "forward": "full", "rows": [0, length], "batch": 1,
                      "commits": [[row.position, row.token, round(row.confidence, 9)] for row in chosen]})
        if rule.end in canvas[len(prompt):]:
            end = canvas.index(rule.end, len(prompt))
            canvas[end:] = [rule.end] * (length - end)
            masked[end:] = [False] * (length - end)
    return canvas, trace, margins


class MaskPredicted(Exception):
    """The model predicts the mask token: what to do then is another question."""


def decode(model, prompt, gen_length, block_length, rule, mask, block_causal, cached=True):
    """(canvas, one entry a forward, margins).

    block_causal: blocks count from position 0, so the rest of the prompt is in the first decoded block; the canvas
    ends with a whole block. Forwards run the rows of a block, earlier blocks come from their K and V, which one more
    forward of the finished block writes. cached=False computes the same from all rows up to the block's end.
    Otherwise: blocks count from the prompt's end, every forward runs all rows.
    """
    length = len(prompt) + gen_length
    first = len(prompt)
    if isinstance(rule, MultiBlock):
        return decode_multi_block(model, prompt, gen_length, block_length, rule, mask)
    if block_causal:
        first = len(prompt) // block_length * block_length
        length = -(-length // block_length) * block_length
    canvas = list(prompt) + [mask] * (length - len(prompt))
    masked = [position >= len(prompt) for position in range(length)]
    trace, margins, past = [], Margins(), None

    def note(kind, block, rows, commits=(), edits=None):
        entry = {"step": len(trace), "block": block, "forward": kind, "rows": rows, "batch": 1,
                 "commits": [[row.position, row.token, round(row.confidence, 9)]
                             for row in sorted(commits, key=lambda row: row.position)]}
        if edits is not None:
            entry["edits"] = edits
        trace.append(entry)

    def run(begin, end):
        if not block_causal:
            return model.forward(canvas)[0][begin:end], None
        if cached:
            return model.forward(canvas[begin:end], block_length, begin, past)
        return model.forward(canvas[:end], block_length)[0][begin:end], None

    if block_causal and first > 0:
        past = run(0, first)[1]
        note("prefill", None, [0, first])
    for block, begin in enumerate(range(first, length, block_length)):
        end, post_steps = begin + block_length, 0
        num_masks = sum(masked[begin:end])
        for step in itertools.count():
            open_rows = [position for position in range(begin, end) if masked[position]]
            if not open_rows:
                post_steps += 1
                if post_steps > getattr(rule, "max_post_steps", 0):
                    break
            logits = run(begin, end)[0]
            rows = {position: Row(position, logits[position - begin]) for position in range(begin, end)}
            chosen = rule.choose([rows[position] for position in open_rows],
                                 rule.quota(step, block_length, num_masks), margins) if open_rows else []
            edited = None
            if isinstance(rule, Editing):
                decided = [rows[p] for p in range(max(begin, len(prompt)), end) if not masked[p]]
                edited = rule.edits(decided, canvas, margins)
            for row in chosen:
                margins.token(row)
            if any(row.token == mask for row in chosen + (edited or [])):
                raise MaskPredicted
            note("block" if block_causal else "full", block, [begin, end] if block_causal else [0, length], chosen,
                 None if edited is None else
                 [[row.position, row.token, round(row.confidence, 9), canvas[row.position]] for row in edited])
            for row in chosen + (edited or []):
                canvas[row.position], masked[row.position] = row.token, False
            if not open_rows and not edited:
                break
        if block_causal:
            past = run(begin, end)[1]
            note("store", block, [begin, end])
    return canvas, trace, margins
