#!/usr/bin/env python3
"""Load test for any server of the OpenAI API; needs httpx.

    scripts/bench.py --workload prefix-repetition --num-prompts 50 --max-concurrency 8
    scripts/bench.py --workload jsonl --data models/demo/eval/eval.jsonl --request-rate 4
    scripts/bench.py --workload generated-shared-prefix --gsp-num-groups 4 --compare-cache

One measurement is: arguments -> requests (`make_requests`) -> outcomes (`run_load`) -> numbers
(`summarize`). Exit status: 0, 1 when a request failed (a refusal with 429 or 503 is no failure),
2 for bad arguments or no server, 130 after Ctrl-C, which still prints what was measured.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import os
import pathlib
import random
import statistics
import sys
import time

if sys.version_info < (3, 11):
    sys.exit("bench: needs Python 3.11 or later")
try:
    import httpx
except ImportError:
    sys.exit("bench: needs httpx: pip install httpx")

REFUSED = (429, 503)  # the server is full or leaving, which is an answer to load and no defect
SIDES = ("off", "on")
CONTROL_TIMEOUT_S = 60  # of what is asked beside the load: models, tokens, flushes
# Shorter than what servers keep an idle connection for (5 s are usual), else a request may meet
# a closing one and fail.
IDLE_CONNECTION_S = 2


class BenchError(Exception):
    """Ends the program with status 2; the message is one sentence for the user."""


# --------------------------------------------------------------------------------------- requests


@dataclasses.dataclass
class Request:
    content: list | str  # messages for chat; token ids or text for completions
    max_tokens: int | None
    answer: str | None = None  # what an exact match compares with


WORDS = """\
a about above across after again against all almost along also always among an and another answer
any are around as ask at away back be because been before began behind being below between big book
both boy but by call came can car carry change children city close come could country cut day did
different do does down each early earth eat end enough even every example eye face family far
father feet few find first follow food for form found four from get girl give go good great group
grow had hand hard has have he head hear help her here high him his home house how i idea if
important in into is it its just keep kind know land large last later learn leave left let letter
life light like line list little live long look made make man many may me mean men might mile more
most mother mountain move much must my name near need never new next night no not now number of off
often old on once one only open or other our out over own page paper part people place plant play
point read really right river run said same saw say school sea second see seem sentence set she
should show side small so some something song soon sound spell start state still stop story study
such take talk tell than that the their them then there these they thing think this those thought
three through time to together too took tree try turn two under until up us use very walk want was
watch water way we well went were what when where which while white who why will with without word
work world would write year you young
""".split()


def random_words(rng, count):
    return "".join(rng.choice(WORDS) + " " for _ in range(count))


class TokenIds:
    """Prompts as ids of random words, so lengths are exact. No id is handed out twice."""

    def __init__(self, rng, tokenize):
        self.rng = rng
        self.tokenize = tokenize
        self.left = []

    def take(self, num_tokens):
        while len(self.left) < num_tokens:
            ids = self.tokenize(random_words(self.rng, 2000))
            if ids is None:
                raise BenchError("the server refuses /tokenize: give --token-source text")
            self.left += ids
        taken, self.left = self.left[:num_tokens], self.left[num_tokens:]
        return taken


class RandomIds:
    """Prompts as ids, without asking the server.

    The outer tenths of the vocabulary are left out: special tokens live there.
    """

    def __init__(self, rng, vocab_size):
        self.rng = rng
        self.ids = range(vocab_size // 10, vocab_size - vocab_size // 10)

    def take(self, num_tokens):
        return self.rng.choices(self.ids, k=num_tokens)


class Text:
    """Prompts as words, for chat and for servers that take no ids: lengths are about right."""

    def __init__(self, rng, words_per_token):
        self.rng = rng
        self.words_per_token = words_per_token

    def take(self, num_tokens):
        return random_words(self.rng, math.ceil(num_tokens * self.words_per_token))


def make_token_source(args, server):
    rng = random.Random(args.seed)
    source = args.token_source
    if args.endpoint == "chat":
        source = "text"
    elif source == "auto":
        source = "ids" if args.vocab_size or server.tokenize("a word ") else "text"
    if source == "ids":
        if args.vocab_size:
            return RandomIds(rng, args.vocab_size)
        if not server.tokenize("a word "):
            raise BenchError(
                "the server has no /tokenize: give --vocab-size, or --token-source text"
            )
        return TokenIds(rng, server.tokenize)
    sample_words = 500
    sample = server.tokenize(random_words(random.Random(args.seed), sample_words))
    words_per_token = sample_words / len(sample) if sample else 0.75
    say(
        f"prompts are text of about {words_per_token:.2f} words a token, so lengths are approximate"
    )
    return Text(rng, words_per_token)


def prefix_repetition(args, source, num_prompts):
    """As vLLM's data set of that name: prefixes, each before an equal share of the prompts."""
    num_prefixes = min(args.prefix_repetition_num_prefixes, num_prompts)
    prompts = []
    for i in range(num_prefixes):
        prefix = source.take(args.prefix_repetition_prefix_len)
        share = len(range(i, num_prompts, num_prefixes))
        prompts += [prefix + source.take(args.prefix_repetition_suffix_len) for _ in range(share)]
    return prompts, args.prefix_repetition_output_len


def generated_shared_prefix(args, source, num_prompts):
    """As SGLang's data set of that name: groups of questions, each behind one system prompt."""
    prompts = []
    while len(prompts) < num_prompts:
        system = source.take(args.gsp_system_prompt_len)
        prompts += [
            system + source.take(args.gsp_question_len) for _ in range(args.gsp_prompts_per_group)
        ]
    return prompts[:num_prompts], args.gsp_output_len


class SyntheticWorkload:
    def __init__(self, args, source, make):
        self.args, self.source, self.make = args, source, make

    def make_requests(self, num_prompts):
        """Every call makes prompts that share nothing with those of earlier calls."""
        prompts, output_len = self.make(self.args, self.source, num_prompts)
        if self.args.shuffle:
            random.Random(self.args.seed).shuffle(prompts)
        if self.args.endpoint == "chat":
            prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return [Request(prompt, output_len) for prompt in prompts]


class JsonlWorkload:
    """A conversation a line: {"messages": [...], "gen_length": 64, "answer": "..."}.

    Only `messages` must be there.
    """

    def __init__(self, path):
        self.requests = []
        try:
            lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BenchError(f"can't read --data {path}: {error}") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                messages, answer = fields["messages"], fields.get("answer")
                if not isinstance(messages, list) or not isinstance(answer, str | None):
                    raise TypeError
                self.requests.append(Request(messages, fields.get("gen_length"), answer))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BenchError(
                    f"{path}, line {number}: must be a JSON object with a list 'messages' and, if "
                    "wanted, a string 'answer'"
                ) from None
        if not self.requests:
            raise BenchError(f"{path} holds no conversations")

    def make_requests(self, num_prompts):
        return self.requests[:num_prompts]


def make_workload(args, server):
    """The workload and the number of prompts to measure."""
    if args.workload == "jsonl":
        workload = JsonlWorkload(args.data)
        available = len(workload.requests)
        if (args.num_prompts or 0) > available:
            raise BenchError(
                f"--num-prompts is {args.num_prompts}, but {args.data} holds {available}"
            )
        return workload, args.num_prompts or available
    source = make_token_source(args, server)
    if args.workload == "prefix-repetition":
        return SyntheticWorkload(args, source, prefix_repetition), args.num_prompts or 100
    available = args.gsp_num_groups * args.gsp_prompts_per_group
    if (args.num_prompts or 0) > available:
        raise BenchError(
            f"--num-prompts is {args.num_prompts}, but the groups hold {available} prompts"
        )
    # All groups take part even if only some prompts are asked for, since those are shuffled.
    workload = SyntheticWorkload(args, source, generated_shared_prefix)
    return Truncated(workload, available), args.num_prompts or available


class Truncated:
    """The first prompts of a larger set."""

    def __init__(self, workload, available):
        self.workload, self.available = workload, available

    def make_requests(self, num_prompts):
        return self.workload.make_requests(self.available)[:num_prompts]


# ------------------------------------------------------------------------------------- the server


class Server:
    """What is asked beside the load, one request at a time."""

    def __init__(self, args):
        self.url = args.base_url
        self.http = httpx.Client(
            headers=auth_headers(),
            timeout=CONTROL_TIMEOUT_S,
            limits=httpx.Limits(keepalive_expiry=IDLE_CONNECTION_S),
        )
        self.model = args.model or self._first_model()

    def _ask(self, method, path, **options):
        try:
            return self.http.request(method, self.url + path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise BenchError(f"no server answers at {self.url}: {describe(error)}") from None

    def check_reachable(self):
        self._ask("GET", "/v1/models")

    def _first_model(self):
        response = self._ask("GET", "/v1/models")
        if response.status_code != 200:
            reason = f"{response.status_code}: {error_message(response.text)}"
            raise BenchError(f"{self.url}/v1/models answers {reason}")
        try:
            return response.json()["data"][0]["id"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise BenchError(f"{self.url}/v1/models names no model: give --model") from None

    def tokenize(self, text):
        """Token ids of `text`, or None where the server can't say."""
        # llama.cpp and bicached read `content`, vLLM reads `prompt`.
        body = {"model": self.model, "content": text, "prompt": text, "add_special_tokens": False}
        response = self._ask("POST", "/tokenize", json=body)
        try:
            tokens = response.json()["tokens"]
        except (ValueError, KeyError, TypeError):
            return None
        return tokens if tokens and all(isinstance(token, int) for token in tokens) else None

    def flush_cache(self):
        """False when the server has no such route."""
        response = self._ask("DELETE", "/v1/cache")
        if response.status_code == 404:
            return False
        if response.is_error:
            raise BenchError(
                f"DELETE /v1/cache answers {response.status_code}: {error_message(response.text)}"
            )
        return True


def auth_headers():
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def describe(error):
    return str(error) or type(error).__name__


def error_message(text):
    """The message of an OpenAI error body, or the beginning of what came instead."""
    try:
        return json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200] or "no message"


# ------------------------------------------------------------------------------------ one request


def make_load_client():
    return httpx.AsyncClient(
        headers={**auth_headers(), "Content-Type": "application/json"},
        timeout=None,
        limits=httpx.Limits(keepalive_expiry=IDLE_CONNECTION_S),
    )


@dataclasses.dataclass
class Outcome:
    start_s: float  # since the start of the load
    status: str = "failed"  # "ok", "failed", "refused"
    error: str | None = None
    e2e_s: float | None = None
    ttft_s: float | None = None  # None when the answer isn't streamed
    gaps_s: list = dataclasses.field(default_factory=list)  # between two chunks with text
    text: str = ""
    usage: dict | None = None
    diffusion: dict | None = None  # bicached's account of the forward passes
    answer: str | None = None

    @property
    def prompt_tokens(self):
        return (self.usage or {}).get("prompt_tokens") or 0

    @property
    def output_tokens(self):
        return (self.usage or {}).get("completion_tokens") or 0

    @property
    def cached_tokens(self):
        return ((self.usage or {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    @property
    def tpot_s(self):
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


class Sender:
    """Sends requests with the fields that all of a run have in common."""

    def __init__(self, args, http, model, extra):
        self.url = args.base_url + (
            "/v1/chat/completions" if args.endpoint == "chat" else "/v1/completions"
        )
        self.content_name = "messages" if args.endpoint == "chat" else "prompt"
        self.timeout_s = args.timeout
        self.common = {
            "model": model,
            "temperature": args.temperature,
            "seed": args.seed,
            "stream": args.stream,
        }
        if args.stream:
            self.common["stream_options"] = {"include_usage": True}
        if args.ignore_eos:
            self.common["ignore_eos"] = True
        self.extra = extra
        self.http = http

    def _body(self, request):
        body = {**self.common, self.content_name: request.content}
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        return json.dumps({**body, **self.extra}).encode()

    async def send(self, request, load_start):
        body = self._body(request)
        start = time.perf_counter()
        outcome = Outcome(start - load_start, answer=request.answer)
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self.http.stream("POST", self.url, content=body) as response,
            ):
                if response.status_code != 200:
                    await response.aread()
                    outcome.status = "refused" if response.status_code in REFUSED else "failed"
                    outcome.error = f"{response.status_code}: {error_message(response.text)}"
                    return outcome
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    await self._read_stream(response, outcome, start)
                else:
                    await response.aread()
                    self._read_body(response.json(), outcome)
            outcome.e2e_s = time.perf_counter() - start
            if outcome.error is None:
                outcome.status = "ok"
                if outcome.ttft_s is None and self.common["stream"]:
                    outcome.ttft_s = (
                        outcome.e2e_s
                    )  # an answer without text has its first token at the end
        except TimeoutError:
            outcome.error = f"no complete answer within {self.timeout_s:g} s (--timeout)"
        except httpx.HTTPError as error:
            outcome.error = f"connection: {describe(error)}"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            outcome.error = f"an answer that isn't OpenAI's form ({type(error).__name__}: {error})"
        return outcome

    async def _read_stream(self, response, outcome, start):
        last_text = None
        finished = False
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line[len("data:") :].strip()
            if data == "[DONE]":
                continue  # read to the end, else the connection can't be used again
            chunk = json.loads(data)
            if chunk.get("error"):
                outcome.error = f"in the stream: {error_message(data)}"
                return
            outcome.usage = chunk.get("usage") or outcome.usage
            outcome.diffusion = chunk.get("diffusion") or outcome.diffusion
            for choice in chunk.get("choices") or []:
                text = (
                    choice["delta"].get("content") if "delta" in choice else choice["text"]
                ) or ""
                finished = finished or choice.get("finish_reason") is not None
                if text:
                    now = time.perf_counter()
                    if last_text is None:
                        outcome.ttft_s = now - start
                    else:
                        outcome.gaps_s.append(now - last_text)
                    last_text = now
                    outcome.text += text
        if not finished:
            outcome.error = "the stream ended without a finish_reason"

    def _read_body(self, body, outcome):
        choice = body["choices"][0]
        outcome.text = (
            choice["message"]["content"] if "message" in choice else choice["text"]
        ) or ""
        outcome.usage = body.get("usage")
        outcome.diffusion = body.get("diffusion")


# --------------------------------------------------------------------------------------- the load


class Progress:
    """A bar on a terminal, else a line a quarter."""

    def __init__(self, label, total):
        self.label, self.total, self.done, self.bar = label, total, 0, None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm

                self.bar = tqdm(total=total, desc=label, unit="request", leave=False)
            except ImportError:
                pass

    def step(self):
        self.done += 1
        if self.bar is not None:
            self.bar.update()
        elif self.done * 4 // self.total > (self.done - 1) * 4 // self.total:
            say(f"{self.label}: {self.done} of {self.total} requests")

    def close(self):
        if self.bar is not None:
            self.bar.close()


@dataclasses.dataclass
class Load:
    outcomes: list
    duration_s: float
    interrupted: bool = False


def start_times(args, count):
    """Seconds from the start of the load at which each request begins."""
    if math.isinf(args.request_rate):
        return [0.0] * count
    rng = random.Random(args.seed)
    mean_s = 1 / args.request_rate
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += rng.gammavariate(
            args.burstiness, mean_s / args.burstiness
        )  # mean is mean_s for every shape
    return times


async def run_load(args, sender, requests, label):
    """Sends all requests. Waiting here for a slot (--max-concurrency) isn't part of a latency."""
    slots = asyncio.Semaphore(args.max_concurrency or len(requests))
    progress = Progress(label, len(requests))
    outcomes = []
    load_start = time.perf_counter()

    async def one(request, start_s):
        await asyncio.sleep(load_start + start_s - time.perf_counter())
        async with slots:
            outcomes.append(await sender.send(request, load_start))
        progress.step()

    tasks = [
        asyncio.create_task(one(*pair)) for pair in zip(requests, start_times(args, len(requests)))
    ]
    interrupted = False
    try:
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:  # how asyncio.run passes on the first Ctrl-C
        interrupted = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    duration_s = time.perf_counter() - load_start
    progress.close()
    return Load(outcomes, duration_s, interrupted)


# ---------------------------------------------------------------------------------------- numbers


def percentile(ordered, share):
    """Linear between the two nearest, as numpy's default."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread_ms(seconds):
    ordered = sorted(s * 1000 for s in seconds if s is not None)
    if not ordered:
        return None
    return {
        "mean": statistics.fmean(ordered),
        "p50": percentile(ordered, 0.5),
        "p90": percentile(ordered, 0.9),
        "p99": percentile(ordered, 0.99),
    }


def ratio(part, whole):
    return part / whole if part is not None and whole else None


def meets(outcome, limits_ms):
    """A latency that doesn't exist, as TPOT of a single token, breaks no limit."""
    measured = {"ttft": outcome.ttft_s, "tpot": outcome.tpot_s, "e2el": outcome.e2e_s}
    return all((measured[name] or 0) * 1000 <= limit for name, limit in limits_ms.items())


def summarize_diffusion(ok):
    accounts = [o.diffusion for o in ok if o.diffusion]
    if not accounts:
        return None
    hits = [a for a in accounts if a.get("cache") == "hit"]
    forwards = sum(a.get("forwards") or 0 for a in accounts)
    return {
        "forwards": forwards,
        "refreshes": sum(a.get("refreshes") or 0 for a in accounts),
        "tokens_per_forward": ratio(sum(o.output_tokens for o in ok if o.diffusion), forwards),
        "cache_hits": len(hits),
        "cache_misses": sum(a.get("cache") == "miss" for a in accounts),
        "mean_depth_of_hits": statistics.fmean(a.get("depth") or 0 for a in hits) if hits else None,
    }


def summarize_accuracy(ok):
    compared = [o for o in ok if o.answer is not None]
    if not compared:
        return None
    right = sum(o.text.strip() == o.answer.strip() for o in compared)
    return {"right": right, "compared": len(compared), "share": right / len(compared)}


def summarize(load, goodput_ms):
    by_status = {
        status: [o for o in load.outcomes if o.status == status]
        for status in ("ok", "failed", "refused")
    }
    ok = by_status["ok"]
    prompt_tokens = sum(o.prompt_tokens for o in ok)
    output_tokens = sum(o.output_tokens for o in ok)
    cached_tokens = sum(o.cached_tokens for o in ok)
    good = sum(meets(o, goodput_ms) for o in ok)
    return {
        "interrupted": load.interrupted,
        "duration_s": load.duration_s,
        "num_requests": len(load.outcomes),
        "num_ok": len(ok),
        "num_failed": len(by_status["failed"]),
        "num_refused": len(by_status["refused"]),
        "num_without_usage": sum(o.usage is None for o in ok),
        "first_error": next((o.error for o in by_status["failed"]), None),
        "first_refusal": next((o.error for o in by_status["refused"]), None),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "cached_tokens": cached_tokens,
        "cached_share": ratio(cached_tokens, prompt_tokens),
        "requests_per_s": len(ok) / load.duration_s,
        "output_tokens_per_s": output_tokens / load.duration_s,
        "total_tokens_per_s": (prompt_tokens + output_tokens) / load.duration_s,
        "ttft_ms": spread_ms(o.ttft_s for o in ok),
        "tpot_ms": spread_ms(o.tpot_s for o in ok),
        "inter_chunk_ms": spread_ms(gap for o in ok for gap in o.gaps_s),
        "e2e_ms": spread_ms(o.e2e_s for o in ok),
        "diffusion": summarize_diffusion(ok),
        "accuracy": summarize_accuracy(ok),
        "goodput": {
            "limits_ms": goodput_ms,
            "share": ratio(good, len(load.outcomes)),
            "requests_per_s": good / load.duration_s,
        }
        if goodput_ms
        else None,
    }


def request_record(outcome):
    def ms(seconds):
        return None if seconds is None else seconds * 1000

    return {
        "status": outcome.status,
        "error": outcome.error,
        "start_ms": ms(outcome.start_s),
        "ttft_ms": ms(outcome.ttft_s),
        "tpot_ms": ms(outcome.tpot_s),
        "e2e_ms": ms(outcome.e2e_s),
        "prompt_tokens": outcome.prompt_tokens,
        "output_tokens": outcome.output_tokens,
        "cached_tokens": outcome.cached_tokens,
        "diffusion": outcome.diffusion,
    }


# Name, and where it is in a summary.
COMPARED = {
    "requests/s": ("requests_per_s",),
    "output tokens/s": ("output_tokens_per_s",),
    "TTFT p50, ms": ("ttft_ms", "p50"),
    "end to end p50, ms": ("e2e_ms", "p50"),
}


def compared_values(off, on):
    """Per measure {"off", "on", "ratio": on/off}, of two summaries."""

    def look_up(summary, keys):
        for key in keys:
            summary = summary and summary[key]
        return summary

    values = {}
    for name, keys in COMPARED.items():
        pair = look_up(off, keys), look_up(on, keys)
        values[name] = {"off": pair[0], "on": pair[1], "ratio": ratio(pair[1], pair[0])}
    return values


def median_of(rounds):
    def median(numbers):
        known = [n for n in numbers if n is not None]
        return statistics.median(known) if known else None

    return {
        name: {column: median(r[name][column] for r in rounds) for column in ("off", "on", "ratio")}
        for name in COMPARED
    }


# --------------------------------------------------------------------------------------- printing


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def show(number, digits=1):
    return "-" if number is None else f"{number:,.{digits}f}"


def show_share(share):
    return "-" if share is None else f"{share:.1%}"


def counts_line(summary):
    line = (
        f"{summary['num_ok']} ok, {summary['num_failed']} failed, {summary['num_refused']} refused"
    )
    if summary["interrupted"]:
        line += " when interrupted"
    return line


def trouble_lines(summary):
    if summary["first_error"]:
        yield "first failure", summary["first_error"]
    if summary["first_refusal"]:
        yield (
            "first refusal",
            f"{summary['first_refusal']} (--max-concurrency or --request-rate lowers the load)",
        )
    if summary["num_without_usage"]:
        yield "without usage", f"{summary['num_without_usage']} answers, whose tokens count as none"


def summary_lines(summary):
    yield "requests", counts_line(summary)
    yield from trouble_lines(summary)
    yield "duration", f"{summary['duration_s']:.2f} s"
    yield "requests/s", show(summary["requests_per_s"], 2)
    yield (
        "output tokens/s",
        f"{show(summary['output_tokens_per_s'])}  ({summary['output_tokens']:,} tokens)",
    )
    yield (
        "total tokens/s",
        f"{show(summary['total_tokens_per_s'])}  ({summary['prompt_tokens']:,} tokens of prompts)",
    )
    yield (
        "cached tokens",
        f"{summary['cached_tokens']:,}  ({show_share(summary['cached_share'])} of the prompts)",
    )
    if summary["diffusion"]:
        d = summary["diffusion"]
        details = (
            f"{show(d['tokens_per_forward'], 2)} tokens a forward, {d['refreshes']:,} refreshes"
        )
        yield "forwards", f"{d['forwards']:,}  ({details})"
        if d["cache_hits"] or d["cache_misses"]:
            depth = show(d["mean_depth_of_hits"])
            counts = f"{d['cache_hits']} hits, {d['cache_misses']} misses"
            yield "prefix cache", f"{counts}, mean depth of hits {depth}"
    if summary["accuracy"]:
        a = summary["accuracy"]
        yield "exact match", f"{show_share(a['share'])}  ({a['right']} of {a['compared']})"
    if summary["goodput"]:
        g = summary["goodput"]
        yield (
            "goodput",
            f"{show_share(g['share'])} of the requests, {show(g['requests_per_s'], 2)} requests/s",
        )


def print_summary(title, summary):
    print(f"\n{title}\n")
    print(f"{'':26}" + "".join(f"{column:>11}" for column in ("mean", "p50", "p90", "p99")))
    for name, key in (
        ("time to first token, ms", "ttft_ms"),
        ("time per output token, ms", "tpot_ms"),
        ("between chunks, ms", "inter_chunk_ms"),
        ("end to end, ms", "e2e_ms"),
    ):
        values = summary[key] or {}
        print(
            f"{name:26}"
            + "".join(f"{show(values.get(column)):>11}" for column in ("mean", "p50", "p90", "p99"))
        )
    print()
    for name, value in summary_lines(summary):
        print(f"{name:18}{value}")


def print_comparison(title, rounds, median, totals):
    print(f"\n{title}\n")
    if rounds:
        print(f"{'':8}" + "".join(f"{name:^29}" for name in COMPARED))
        print(f"{'round':8}" + f"{'off':>10}{'on':>10}{'on/off':>8} " * len(COMPARED))
        for label, row in [*enumerate((r["compared"] for r in rounds), 1), ("median", median)]:
            print(
                f"{label:<8}"
                + "".join(
                    f"{show(v['off'], 2):>10}{show(v['on'], 2):>10}{show(v['ratio'], 2):>8} "
                    for v in row.values()
                )
            )
        print()
    for side, total in totals.items():
        print(f"reuse {side}")
        wanted = (
            "requests",
            "first failure",
            "first refusal",
            "without usage",
            "cached tokens",
            "forwards",
            "prefix cache",
            "exact match",
            "goodput",
        )
        for name, value in summary_lines(total):
            if name in wanted:
                print(f"  {name:16}{value}")


def import_pyplot():
    try:
        import matplotlib
    except ImportError:
        raise BenchError("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def write_plot(path, title, loads):
    """`loads`: label -> Load. Share of requests under a latency; latency over the run."""
    pyplot = import_pyplot()
    figure, (first, whole, over_time) = pyplot.subplots(
        1, 3, figsize=(14, 4.2), layout="constrained"
    )
    for label, load in loads.items():
        ok = [o for o in load.outcomes if o.status == "ok"]
        for axes, values in ((first, [o.ttft_s for o in ok]), (whole, [o.e2e_s for o in ok])):
            ordered = sorted(v * 1000 for v in values if v is not None)
            axes.step(
                ordered,
                [(i + 1) / len(ordered) for i in range(len(ordered))],
                where="post",
                label=label,
            )
        over_time.plot([o.start_s for o in ok], [o.e2e_s * 1000 for o in ok], ".", label=label)
    for axes, name in ((first, "time to first token, ms"), (whole, "end to end, ms")):
        axes.set(xlabel=name, ylabel="share of requests", ylim=(0, 1.02))
    over_time.set(xlabel="start of the request, s", ylabel="end to end, ms")
    over_time.set_ylim(bottom=0)
    for axes in (first, whole, over_time):
        axes.locator_params(axis="x", nbins=6)
        axes.grid(alpha=0.3)
        if len(loads) > 1:
            axes.legend()
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise BenchError(f"can't write --plot {path}: {error}") from None


def write_json(path, document):
    try:
        pathlib.Path(path).write_text(json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise BenchError(f"can't write --json {path}: {error}") from None


# ----------------------------------------------------------------------------------- measurements


@dataclasses.dataclass
class Measurement:
    document: dict  # for --json
    loads: dict  # label -> Load, for --plot and the exit status
    interrupted: bool


async def measure(args, http, server, workload, num_prompts):
    requests = workload.make_requests(num_prompts)
    sender = Sender(args, http, server.model, args.extra_body)
    warm_up = await run_warmup(args, sender, workload)
    if warm_up.interrupted:
        load = Load([], warm_up.duration_s, True)
    else:
        load = await run_load(args, sender, requests, "load")
    summary = summarize(load, args.goodput)
    print_summary(title_of(args, server), summary)
    document = {"summary": summary, "requests": [request_record(o) for o in load.outcomes]}
    return Measurement(document, {"load": load}, load.interrupted)


async def compare_cache(args, http, server, workload, num_prompts):
    """The same requests with reuse off and on in turn, so that a drifting machine favours none."""
    requests = workload.make_requests(num_prompts)
    caches = {
        "off": {"cache": {"policy": "off"}},
        "on": {"cache": args.cache_policy} if args.cache_policy else {},
    }
    senders = {
        side: Sender(args, http, server.model, {**args.extra_body, **caches[side]})
        for side in SIDES
    }
    rounds, totals = [], {}
    interrupted = (await run_warmup(args, senders["on"], workload)).interrupted
    while len(rounds) < args.rounds and not interrupted:
        summaries = {}
        for side in SIDES:
            if side == "on" and not args.keep_cache:
                flush_or_warn(server, first_time=not rounds)
            label = f"round {len(rounds) + 1}, reuse {side}"
            load = await run_load(args, senders[side], requests, label)
            summaries[side] = summarize(load, args.goodput)
            total = totals.setdefault(side, Load([], 0.0))
            total.outcomes += load.outcomes
            total.duration_s += load.duration_s
            interrupted = total.interrupted = load.interrupted
            if interrupted:
                break
        else:
            compared = compared_values(summaries["off"], summaries["on"])
            rounds.append({**summaries, "compared": compared})
    median = median_of([r["compared"] for r in rounds])
    total_summaries = {side: summarize(load, args.goodput) for side, load in totals.items()}
    policy = args.cache_policy["policy"] if args.cache_policy else "the server's default policy"
    title = f"reuse off against {policy}: {title_of(args, server)}"
    print_comparison(title, rounds, median, total_summaries)
    document = {"rounds": rounds, "median": median, "total": total_summaries}
    return Measurement(document, totals, interrupted)


def flush_or_warn(server, first_time):
    if not server.flush_cache() and first_time:
        say(
            "WARNING: the server has no DELETE /v1/cache, so the cache isn't emptied and each "
            "round with reuse finds what earlier ones left"
        )


async def run_warmup(args, sender, workload):
    if not args.warmup:
        return Load([], 0.0)
    unlimited = argparse.Namespace(**{**vars(args), "request_rate": math.inf})
    return await run_load(unlimited, sender, workload.make_requests(args.warmup), "warm-up")


def title_of(args, server):
    return f"{args.workload} on {server.model} at {args.base_url}"


def run(args):
    if args.plot:
        import_pyplot()  # say before the measurement, not after it, that it is missing
    server = Server(args)
    server.check_reachable()
    workload, num_prompts = make_workload(args, server)

    async def measure_with_client():
        how = compare_cache if args.compare_cache else measure
        async with make_load_client() as http:
            return await how(args, http, server, workload, num_prompts)

    measurement = asyncio.run(measure_with_client())
    if args.json:
        write_json(
            args.json,
            {"settings": settings_record(args), "model": server.model, **measurement.document},
        )
    if args.plot:
        write_plot(args.plot, title_of(args, server), measurement.loads)
    if measurement.interrupted:
        return 130
    outcomes = [o for load in measurement.loads.values() for o in load.outcomes]
    return 1 if any(o.status == "failed" for o in outcomes) else 0


def settings_record(args):
    """JSON has no infinity."""
    return {name: str(value) if value == math.inf else value for name, value in vars(args).items()}


# -------------------------------------------------------------------------------------- arguments


def number_at_least(least, kind):
    name = "a whole number" if kind is int else "a number"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not value >= least:
            raise argparse.ArgumentTypeError(f"is {text!r}; must be {name} of at least {least}")
        return value

    return parse


def above_zero(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"is {text!r}; must be a number above 0")
    return value


def finite_above_zero(text):
    value = above_zero(text)
    if math.isinf(value):
        raise argparse.ArgumentTypeError(f"is {text!r}; must be a finite number above 0")
    return value


def cache_policy(text):
    """`full`, or `fixed:6`: the field `cache` of a request."""
    name, colon, depth = text.partition(":")
    if (name == "fixed") != bool(colon) or (colon and not depth.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"is {text!r}; must be the name of a policy, of fixed with its depth, as in fixed:6"
        )
    return {"policy": name, "depth": int(depth)} if colon else {"policy": name}


def json_object(text):
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"is {text!r}; must be a JSON object")
    return value


def goodput_limit(text):
    name, _, limit = text.partition(":")
    if name not in ("ttft", "tpot", "e2el"):
        raise argparse.ArgumentTypeError(
            f"is {text!r}; must be ttft, tpot or e2el, a colon and milliseconds"
        )
    limit_ms = above_zero(limit)
    if math.isinf(limit_ms):
        raise argparse.ArgumentTypeError(f"is {text!r}; must be finite")
    return name, limit_ms


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one sentence instead of the whole usage
        raise BenchError(f"{message} (--help lists the arguments)")


class HelpFormatter(argparse.HelpFormatter):
    def _get_help_string(self, action):
        default = action.default
        says_it_itself = default in ({}, [], argparse.SUPPRESS) or default is None or default is False
        return action.help if says_it_itself else f"{action.help} (default: %(default)s)"


def make_parser():
    parser = Parser(
        description="Load test for any server of the OpenAI API.",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    count, length = number_at_least(1, int), number_at_least(0, int)

    target = parser.add_argument_group("server (the key is read from OPENAI_API_KEY)")
    target.add_argument(
        "--base-url",
        default="http://127.0.0.1:8080",
        help="Address of the server, with or without /v1.",
    )
    target.add_argument(
        "--model", help="Name to send as model; the first of /v1/models if not given."
    )
    target.add_argument(
        "--endpoint",
        choices=("chat", "completions"),
        help="Route to load; if not given, chat for jsonl and completions for the others.",
    )
    target.add_argument(
        "--extra-body",
        type=json_object,
        default={},
        metavar="JSON",
        help='Fields merged into every request, such as {"threshold": 0.9, "steps": 64}.',
    )
    target.add_argument(
        "--temperature", type=number_at_least(0, float), default=0.0, help="Temperature to send."
    )
    target.add_argument(
        "--seed",
        type=length,
        default=0,
        help="Seed of the prompts and the start times, also sent as seed.",
    )
    target.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Stream the answers; without streaming there is no TTFT, TPOT or time between chunks.",
    )
    target.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="Send ignore_eos, so that answers have the length asked for; if not given, "
        "on for the synthetic workloads.",
    )

    workload = parser.add_argument_group("workload")
    workload.add_argument(
        "--workload",
        choices=("prefix-repetition", "generated-shared-prefix", "jsonl"),
        default="prefix-repetition",
        help="What to send.",
    )
    workload.add_argument(
        "--num-prompts",
        type=count,
        help="Requests to measure; if not given, 100 for prefix-repetition, else all there are.",
    )
    workload.add_argument(
        "--warmup",
        type=length,
        default=0,
        metavar="N",
        help="Requests to send before and not to count; synthetic ones share no prefix with "
        "those that count.",
    )
    workload.add_argument(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Mix the prompts of a synthetic workload, instead of sending group after group.",
    )
    workload.add_argument(
        "--token-source",
        choices=("auto", "ids", "text"),
        default="auto",
        help="Send synthetic prompts as token ids (exact lengths) or text; "
        "auto takes ids where the server has /tokenize and the endpoint is completions.",
    )
    workload.add_argument(
        "--vocab-size",
        type=number_at_least(10, int),
        metavar="N",
        help="Take random ids of a vocabulary of that size instead of asking /tokenize.",
    )
    workload.add_argument(
        "--data",
        metavar="FILE",
        help="For jsonl: an object a line with messages, and if known gen_length and answer.",
    )

    repetition = parser.add_argument_group("prefix-repetition, lengths in tokens")
    repetition.add_argument(
        "--prefix-repetition-prefix-len",
        type=length,
        default=256,
        metavar="N",
        help="Length of a shared prefix.",
    )
    repetition.add_argument(
        "--prefix-repetition-suffix-len",
        type=length,
        default=256,
        metavar="N",
        help="Length of what follows it.",
    )
    repetition.add_argument(
        "--prefix-repetition-num-prefixes",
        type=count,
        default=10,
        metavar="N",
        help="Number of prefixes.",
    )
    repetition.add_argument(
        "--prefix-repetition-output-len",
        type=count,
        default=128,
        metavar="N",
        help="Length of an answer.",
    )

    groups = parser.add_argument_group("generated-shared-prefix, lengths in tokens")
    groups.add_argument(
        "--gsp-num-groups", type=count, default=64, metavar="N", help="Number of system prompts."
    )
    groups.add_argument(
        "--gsp-prompts-per-group",
        type=count,
        default=16,
        metavar="N",
        help="Questions behind each of them.",
    )
    groups.add_argument(
        "--gsp-system-prompt-len",
        type=length,
        default=2048,
        metavar="N",
        help="Length of a system prompt.",
    )
    groups.add_argument(
        "--gsp-question-len", type=length, default=128, metavar="N", help="Length of a question."
    )
    groups.add_argument(
        "--gsp-output-len", type=count, default=256, metavar="N", help="Length of an answer."
    )

    load = parser.add_argument_group("load")
    load.add_argument(
        "--request-rate",
        type=above_zero,
        default=math.inf,
        metavar="R",
        help="Requests that start in a second on average; inf starts all at once.",
    )
    load.add_argument(
        "--burstiness",
        type=finite_above_zero,
        default=1.0,
        metavar="B",
        help="Shape of the gamma distribution of the intervals: 1 is a Poisson process, "
        "less comes in bursts, more is even.",
    )
    load.add_argument(
        "--max-concurrency",
        type=count,
        metavar="N",
        help="Most requests under way; more wait here, which no latency includes.",
    )
    load.add_argument(
        "--timeout",
        type=above_zero,
        default=600.0,
        metavar="S",
        help="Seconds after which a request counts as failed.",
    )

    report = parser.add_argument_group("report")
    report.add_argument(
        "--goodput",
        type=goodput_limit,
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="Count the requests that meet all of these limits: ttft:500, tpot:50, e2el:3000.",
    )
    report.add_argument("--json", metavar="FILE", help="Write all numbers there.")
    report.add_argument(
        "--plot", metavar="FILE.png", help="Draw the latencies there; needs matplotlib."
    )

    compare = parser.add_argument_group("comparison, only for bicached")
    compare.add_argument(
        "--compare-cache",
        action="store_true",
        help="Run the same requests without any reuse (policy off) and with the server's own in "
        "turn and print the ratios. Stored prefixes are dropped before each round with reuse; what "
        "the policy measured has learnt stays, so its first round is the coldest.",
    )
    compare.add_argument(
        "--rounds", type=count, default=3, metavar="N", help="Times to run each of the two."
    )
    compare.add_argument(
        "--cache-policy",
        type=cache_policy,
        metavar="NAME",
        help="Policy of the rounds with reuse, as full or fixed:6; if not given, the server's "
        "default.",
    )
    compare.add_argument(
        "--keep-cache", action="store_true", help="Don't empty the cache before a round with reuse."
    )
    return parser


def parse_arguments(argv):
    """Fills the defaults that depend on other arguments."""
    args = make_parser().parse_args(argv)
    args.base_url = args.base_url.rstrip("/").removesuffix("/v1")
    synthetic = args.workload != "jsonl"
    args.endpoint = args.endpoint or ("completions" if synthetic else "chat")
    args.ignore_eos = synthetic if args.ignore_eos is None else args.ignore_eos
    args.goodput = dict(args.goodput)
    if args.goodput.keys() & {"ttft", "tpot"} and not args.stream:
        raise BenchError("--goodput with ttft or tpot needs streaming")
    if not synthetic and args.endpoint != "chat":
        raise BenchError("--workload jsonl holds conversations and needs --endpoint chat")
    if synthetic == bool(args.data):
        raise BenchError("--data and --workload jsonl need each other")
    if args.endpoint == "chat" and args.token_source == "ids":
        raise BenchError(
            "--token-source ids needs --endpoint completions: a chat can't hold token ids"
        )
    if args.prefix_repetition_prefix_len + args.prefix_repetition_suffix_len == 0:
        raise BenchError(
            "--prefix-repetition-prefix-len and --prefix-repetition-suffix-len can't both be 0"
        )
    if args.gsp_system_prompt_len + args.gsp_question_len == 0:
        raise BenchError("--gsp-system-prompt-len and --gsp-question-len can't both be 0")
    if not args.compare_cache and (args.cache_policy or args.keep_cache):
        raise BenchError(
            "--cache-policy and --keep-cache need --compare-cache; for a plain run "
            "--extra-body sets the policy"
        )
    if args.compare_cache and "cache" in args.extra_body:
        raise BenchError("--compare-cache sets the field cache itself, so --extra-body can't")
    return args


def main(argv=None):
    try:
        return run(parse_arguments(argv))
    except BenchError as error:
        say(error)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
