#!/usr/bin/env python3
"""Shared-prefix traffic for bicached, with the prefix cache off and on in turn.

    scripts/bench.py --workload prefix-repetition --num-prompts 50
    scripts/bench.py --workload jsonl --data models/demo/eval/eval.jsonl
    scripts/bench.py --workload generated-shared-prefix --gsp-num-groups 4 --compare-cache

Needs httpx and tqdm, which scripts/bootstrap installs into .venv. General load tests are the work
of other tools: docs/operations.md has their command lines. Exit status: 0, 1 when a request failed,
2 for bad arguments or no server, 130 after Ctrl-C, which still prints what was measured.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import statistics
import sys
import time

try:
    import httpx
    from tqdm import tqdm
except ImportError as missing:
    sys.exit(f"bench: {missing}: pip install httpx tqdm, or run it with .venv/bin/python")

REPETITION, GROUPS, JSONL = "prefix-repetition", "generated-shared-prefix", "jsonl"
COMPARED = {"requests/s": "requests_per_s", "output tokens/s": "output_tokens_per_s",
            "TTFT p50, ms": "ttft_p50_ms", "end to end p50, ms": "e2e_p50_ms"}
WORDS = """about after again animal answer because begin book change children city country early
earth every example family father food group hand house idea important large later learn letter
light line little mountain music name night number open other page people place river""".split()


class BenchError(Exception):
    """Ends the program with status 2; its message is for the user."""


class Server:
    """What is asked beside the load, one request at a time."""

    def __init__(self, url):
        key = os.environ.get("OPENAI_API_KEY")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(headers=self.headers, timeout=60)
        self.model = self.ask("GET", "/v1/models")["data"][0]["id"]

    def ask(self, method, path, **options):
        try:
            answer = self.http.request(method, self.url + path, **options)
            if not answer.is_error:
                return answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise BenchError(f"no server answers at {self.url}: {error}") from None
        raise BenchError(f"{path} answers {answer.status_code}: {answer.text.strip()[:200]}")


class TokenIds:
    """Prompts as ids of random words, so that lengths are exact. No id is handed out twice."""

    def __init__(self, server, seed):
        self.server, self.rng, self.left = server, random.Random(seed), []

    def take(self, num_tokens):
        while len(self.left) < num_tokens:
            body = {"content": "".join(self.rng.choice(WORDS) + " " for _ in range(2000))}
            self.left += self.server.ask("POST", "/tokenize", json=body)["tokens"]
        taken, self.left = self.left[:num_tokens], self.left[num_tokens:]
        return taken


def make_synthetic(args, source, count):
    """As vLLM's and SGLang's data sets of these names."""
    given = vars(args)
    if args.workload == REPETITION:
        prefix_len, suffix_len, output_len = (
            given[f"prefix_repetition_{part}_len"] for part in ("prefix", "suffix", "output"))
        groups = min(args.prefix_repetition_num_prefixes, count)
        shares = [len(range(i, count, groups)) for i in range(groups)]
    else:
        prefix_len, suffix_len, output_len = (
            given[f"gsp_{part}_len"] for part in ("system_prompt", "question", "output"))
        shares = [args.gsp_prompts_per_group] * args.gsp_num_groups
    prompts = []
    for share in shares:
        prefix = source.take(prefix_len)
        prompts += [prefix + source.take(suffix_len) for _ in range(share)]
    random.Random(args.seed).shuffle(prompts)
    return [{"prompt": prompt, "max_tokens": output_len} for prompt in prompts[:count]]


def read_jsonl(path):
    """A conversation a line: messages, and if wanted gen_length."""
    requests, number = [], 0
    try:
        for number, line in enumerate(pathlib.Path(path).read_text("utf-8").splitlines(), 1):
            given = json.loads(line)
            length = {"max_tokens": given["gen_length"]} if "gen_length" in given else {}
            requests.append({"messages": given["messages"], **length})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"--data {path}, line {number}: {type(error).__name__} {error}") from None
    return requests


def make_requests(args, server):
    conversations = read_jsonl(args.data) if args.workload == JSONL else []
    available = {JSONL: len(conversations), REPETITION: sys.maxsize,
                 GROUPS: args.gsp_num_groups * args.gsp_prompts_per_group}[args.workload]
    count = args.num_prompts or (100 if args.workload == REPETITION else available)
    if not 0 < count <= available:
        raise BenchError(f"--num-prompts is {count}, but the workload holds {available}")
    return conversations[:count] or make_synthetic(args, TokenIds(server, args.seed), count)


async def read_stream(response, outcome, start):
    finished = False
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue  # read to the end, else the connection can't be used again
        chunk = json.loads(data)
        if chunk.get("error"):
            raise ValueError(f"in the stream: {chunk['error']['message']}")
        if usage := chunk.get("usage"):
            outcome["diffusion"] = chunk["diffusion"]
            outcome["prompt_tokens"] = usage["prompt_tokens"]
            outcome["output_tokens"] = usage["completion_tokens"]
            outcome["cached_tokens"] = usage["prompt_tokens_details"]["cached_tokens"]
        for choice in chunk["choices"]:
            finished = finished or choice.get("finish_reason") is not None
            text = choice.get("text") or choice.get("delta", {}).get("content")
            if text and outcome["ttft_ms"] is None:
                outcome["ttft_ms"] = 1000 * (time.perf_counter() - start)
    if not finished:
        raise ValueError("the stream ended without a finish_reason")


async def send(http, url, body, load_start):
    """One request; the outcome is what --json has of it."""
    start = time.perf_counter()
    outcome = {"ok": False, "error": None, "start_ms": 1000 * (start - load_start),
               "ttft_ms": None, "e2e_ms": None, "prompt_tokens": 0, "output_tokens": 0,
               "cached_tokens": 0, "diffusion": {}}
    route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    try:
        async with http.stream("POST", url + route, json=body) as response:
            if response.status_code != 200:
                raise ValueError(f"{response.status_code} {(await response.aread()).decode()}")
            await read_stream(response, outcome, start)
        outcome["ok"], outcome["e2e_ms"] = True, 1000 * (time.perf_counter() - start)
        outcome["ttft_ms"] = outcome["ttft_ms"] or outcome["e2e_ms"]  # without text: the end
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        outcome["error"] = f"{type(error).__name__}: {error}"[:300].strip()
    return outcome


async def run_load(args, server, requests, extra, label):
    """Returns outcomes, seconds, and whether Ctrl-C came. Waiting for a slot is in no latency."""
    fields = {"model": server.model, "temperature": 0, "seed": args.seed, "stream": True,
              "stream_options": {"include_usage": True}, "ignore_eos": args.ignore_eos,
              **args.extra_body, **extra}
    slots = asyncio.Semaphore(args.max_concurrency)
    outcomes, interrupted, load_start = [], False, time.perf_counter()
    bar = tqdm(total=len(requests), desc=label, unit="request", leave=False, disable=None)
    # Idle for less than the server waits, else a request may meet a closing connection.
    limits = httpx.Limits(keepalive_expiry=2)
    async with httpx.AsyncClient(headers=server.headers, timeout=None, limits=limits) as http:

        async def one(request):
            async with slots:
                outcomes.append(await send(http, server.url, {**request, **fields}, load_start))
            bar.update()

        tasks = [asyncio.create_task(one(request)) for request in requests]
        try:
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:  # how asyncio.run passes on the first Ctrl-C
            interrupted = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        bar.close()
        return outcomes, time.perf_counter() - load_start, interrupted


def summarize(outcomes, duration_s):
    ok = [o for o in outcomes if o["ok"]]
    errors = [o["error"] for o in outcomes if not o["ok"]]
    caches = [o["diffusion"].get("cache") for o in ok]
    hits, misses = caches.count("hit"), caches.count("miss")
    tokens = {name: sum(o[name] for o in ok)
              for name in ("prompt_tokens", "output_tokens", "cached_tokens")}
    return {"duration_s": duration_s, "num_ok": len(ok), "num_failed": len(errors), **tokens,
            "first_error": errors[0] if errors else None, "requests_per_s": len(ok) / duration_s,
            "output_tokens_per_s": tokens["output_tokens"] / duration_s,
            "ttft_p50_ms": statistics.median(o["ttft_ms"] for o in ok) if ok else None,
            "e2e_p50_ms": statistics.median(o["e2e_ms"] for o in ok) if ok else None,
            "hits": hits, "misses": misses, "hit_rate": hits / (hits + misses or 1),
            "diffusion": {name: sum(o["diffusion"].get(name, 0) for o in ok)
                          for name in ("forwards", "refreshes", "row_layers")}}


def print_summary(title, s, interrupted):
    end = " when interrupted" if interrupted else ""
    print(f"{title}: {s['num_ok']} ok, {s['num_failed']} failed{end}, {s['duration_s']:.2f} s")
    lines = {name: f"{s[key] or 0:,.2f}" for name, key in COMPARED.items()} | {
        "first error": s["first_error"],
        "tokens": f"{s['prompt_tokens']:,} of prompts, {s['cached_tokens']:,} of these cached,"
                  f" {s['output_tokens']:,} of answers",
        "prefix cache": f"{s['hits']} hits, {s['misses']} misses, hit rate {s['hit_rate']:.2f}",
        "diffusion": ", ".join(f"{number:,} {name}" for name, number in s["diffusion"].items())}
    for name in filter(lines.get, lines if s["num_ok"] else ["first error"]):
        print(f"  {name:20}{lines[name]}")


async def measure(args, server, requests):
    """Off and on take turns, so that a machine that drifts favours none. Returns the document."""
    on = {"cache": {"policy": args.cache_policy}} if args.cache_policy else {}
    sides = {"off": {"cache": {"policy": "off"}}, "on": on} if args.compare_cache else {"load": {}}
    rounds, loads, interrupted = [], {side: ([], 0.0) for side in sides}, False
    for number in range(args.rounds * len(sides) if args.compare_cache else 1):
        if interrupted:
            break
        side = list(sides)[number % len(sides)]
        if side == "on":
            server.ask("DELETE", "/v1/cache")
        label = f"round {number // len(sides) + 1}, {side}"
        outcomes, seconds, interrupted = await run_load(args, server, requests, sides[side], label)
        rounds += [{}] if number % len(sides) == 0 else []
        rounds[-1][side] = summarize(outcomes, seconds)
        loads[side] = loads[side][0] + outcomes, loads[side][1] + seconds
    totals = {side: summarize(*load) for side, load in loads.items() if load[1]}
    for side, total in totals.items():
        print_summary(side, total, interrupted)
    whole = [r for r in rounds if "on" in r and r["off"]["num_ok"]]
    ratios = {name: [r["on"][key] / r["off"][key] for r in whole] for name, key in COMPARED.items()}
    for name in filter(ratios.get, ratios):
        print(f"{name}, on/off: {', '.join(f'{number:.2f}' for number in ratios[name])}")
    return {"interrupted": interrupted, "rounds": rounds, "total": totals, "ratios": ratios,
            "requests": {side: load[0] for side, load in loads.items()}}


NUMBERS = {  # flag: default; lengths are in tokens
    "num-prompts": None, "max-concurrency": 8, "seed": 0, "rounds": 3,
    "prefix-repetition-num-prefixes": 10, "prefix-repetition-prefix-len": 256,
    "prefix-repetition-suffix-len": 256, "prefix-repetition-output-len": 128,
    "gsp-num-groups": 64, "gsp-prompts-per-group": 16,
    "gsp-system-prompt-len": 2048, "gsp-question-len": 128, "gsp-output-len": 256}


def parse_arguments(argv):
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8080", help="a key is read from OPENAI_API_KEY")
    add("--workload", choices=(REPETITION, GROUPS, JSONL), default=REPETITION)
    add("--data", help="of jsonl: an object a line with messages and, if wanted, gen_length")
    for flag, default in NUMBERS.items():
        add(f"--{flag}", type=int, default=default, metavar="N", help=f"default: {default}")
    add("--extra-body", type=json.loads, default={}, metavar="JSON", help="fields of every request")
    add("--ignore-eos", action=argparse.BooleanOptionalAction, help="not given: unless jsonl")
    add("--compare-cache", action="store_true", help="--rounds times, policy off and the server's; "
        "stored prefixes are dropped before each turn, what probes found is not")
    add("--cache-policy", help="instead of the server's in --compare-cache, such as full")
    add("--json", metavar="FILE", help="all numbers")
    args = parser.parse_args(argv)
    for flag in NUMBERS:
        value = getattr(args, flag.replace("-", "_"))
        if value is not None and value < (flag != "seed"):
            parser.error(f"--{flag} is {value}: too small")
    if (args.workload == JSONL) != bool(args.data):
        parser.error("--data and --workload jsonl need each other")
    if not isinstance(args.extra_body, dict) or args.compare_cache and "cache" in args.extra_body:
        parser.error("--extra-body must be a JSON object, without cache beside --compare-cache")
    args.ignore_eos = args.workload != JSONL if args.ignore_eos is None else args.ignore_eos
    return args


def main(argv=None):
    args = parse_arguments(argv)
    try:
        server = Server(args.base_url)
        document = asyncio.run(measure(args, server, make_requests(args, server)))
        if args.json:
            document |= {"settings": vars(args), "model": server.model}
            pathlib.Path(args.json).write_text(json.dumps(document, indent=1) + "\n")
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    failed = any(total["num_failed"] for total in document["total"].values())
    return 130 if document["interrupted"] else int(failed)


if __name__ == "__main__":
    sys.exit(main())
