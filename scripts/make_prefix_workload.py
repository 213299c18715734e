#!/usr/bin/env python3
"""Questions that share a long system message, as JSONL for `bicached-lab eval`; needs nothing.

    scripts/make_prefix_workload.py --prefix-tokens 700 --questions 32 > prefix-700.jsonl

Made of words that are one token each in models/demo's tokenizer, so that lengths hold for it to a
few tokens, the chat template's own included. The expected answers are empty: it is about speed.
"""

import argparse
import json
import pathlib
import random

TOKENIZER = pathlib.Path(__file__).resolve().parent.parent / "models" / "demo" / "tokenizer.json"
SPACE = "\u0120"  # how a byte-level vocabulary writes a leading space
# Header and end of a message; the question's also those of the answer that follows.
SYSTEM_TOKENS, QUESTION_TOKENS = 8, 12


def words_of_one_token():
    vocab = json.loads(TOKENIZER.read_text(encoding="utf-8"))["model"]["vocab"]
    return sorted(t[1:] for t in vocab if t.startswith(SPACE) and t[1:].isalpha() and len(t) > 4)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefix-tokens", type=int, default=700)
    parser.add_argument("--question-tokens", type=int, default=100)
    parser.add_argument("--prefixes", type=int, default=1)
    parser.add_argument("--questions", type=int, default=32, help="of each prefix")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main():
    args = parse_args()
    rng = random.Random(args.seed)
    words = words_of_one_token()

    def text(num_tokens):
        return " ".join(rng.choices(words, k=max(1, num_tokens)))

    for _ in range(args.prefixes):
        system = {"role": "system", "content": text(args.prefix_tokens - SYSTEM_TOKENS)}
        for _ in range(args.questions):
            user = {"role": "user", "content": text(args.question_tokens - QUESTION_TOKENS)}
            print(json.dumps({"messages": [system, user], "answer": ""}))


if __name__ == "__main__":
    main()
