#!/usr/bin/env python3
"""Mixed traffic for a while, and what grows under it.

scripts/soak.py [--minutes 20]   starts build/release/bicached on the demo model, sends it chats of many system
prompts and tenants, streams, broken-off requests and bad ones, and looks at the process once in a while. Prints a line
a look, then how much memory, open files and the time of a request grew over the second half. Ends with 1 when one of
them grew by more than its bound, or the server did not live through it.
"""

import argparse
import http.client
import json
import math
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
TIMEOUT_S = 120


def system_prompt(number):
    rng = random.Random(number)
    goods = [f"- {rng.choice(['red', 'blue', 'green'])} {rng.choice(['mug', 'lamp', 'chair'])}: {rng.randint(2, 60)} coins"
             for _ in range(6)]
    return f"You are the assistant of shop {number}. Price list:\n" + "\n".join(goods)


class Traffic:
    """Requests of one client after the other, until `stop` is set. Counts what came back."""

    def __init__(self, port, num_prefixes):
        self.port, self.num_prefixes = port, num_prefixes
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.counts, self.times, self.unexpected = {}, [], []

    def run(self, seed):
        rng = random.Random(seed)
        kinds = [self.chat] * 12 + [self.stream, self.abort, self.bad_json, self.bad_field, self.no_route, self.long_body]
        while not self.stop.is_set():
            kind = rng.choice(kinds)
            try:
                status = kind(rng)
            except OSError as error:
                status = type(error).__name__
            with self.lock:
                name = (kind.__name__, status)
                self.counts[name] = self.counts.get(name, 0) + 1

    def body(self, rng, **fields):
        # Most come back to a prompt that was there a little while ago, so that entries are made and dropped.
        number = int(rng.expovariate(8) * self.num_prefixes) % self.num_prefixes
        body = {"messages": [{"role": "system", "content": system_prompt(number)},
                             {"role": "user", "content": rng.choice(["How much is the red mug?", "Is there a blue lamp?"])}],
                "max_tokens": rng.randint(1, 12), **fields}
        if rng.random() < 0.2:
            body["cache"] = {"salt": f"tenant {rng.randint(0, 20)}"}
        if rng.random() < 0.1:
            body.update(n=2, temperature=1.0)
        return body

    def post(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def chat(self, rng):
        start = time.monotonic()
        status = self.post("/v1/chat/completions", json.dumps(self.body(rng)))
        with self.lock:
            self.times.append(time.monotonic() - start)
        return self.expect(status, 200)

    def stream(self, rng):
        return self.expect(self.post("/v1/chat/completions", json.dumps(self.body(rng, stream=True))), 200)

    def abort(self, rng):
        body = json.dumps(self.body(rng, stream=rng.random() < 0.5, max_tokens=64)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S) as connection:
            connection.sendall((head + body)[:rng.choice([20, len(head) + 9, len(head) + len(body)])])
            time.sleep(rng.random() * 0.05)
        return 0

    def bad_json(self, rng):
        return self.expect(self.post("/v1/completions", '{"prompt": ' + "[" * rng.randint(0, 2000)), 400)

    def bad_field(self, rng):
        return self.expect(self.post("/v1/chat/completions", json.dumps({**self.body(rng), "temperature": "warm"})), 400)

    def no_route(self, rng):
        return self.expect(self.post(f"/v1/nothing/{rng.random()}", "{}"), 404)

    def long_body(self, rng):
        return self.expect(self.post("/v1/completions", json.dumps({"prompt": "a" * rng.randint(1 << 16, 1 << 21)})), 400)

    def expect(self, status, wanted):
        if status not in (wanted, 429):
            with self.lock:
                self.unexpected.append(f"{status} instead of {wanted}")
        return status


def resident_mb(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024


def lowest_resident_mb(process, seconds):
    """What is kept: buffers of forwards and bodies of requests come and go."""
    lowest, end = math.inf, time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.1)
        try:
            lowest = min(lowest, resident_mb(process.pid))
        except (OSError, AttributeError):  # it has ended
            break
    return lowest


def line_through(points):
    """Value at the first and at the last point of the straight line nearest to them."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0
    return mean_y + slope * (points[0][0] - mean_x), mean_y + slope * (points[-1][0] - mean_x)


def grew(name, unit, looks, key, most, share):
    """Prints the growth over the second half; whether it is within bounds. `share`: `most` is a part of the beginning."""
    first, last = line_through([(look["s"], look[key]) for look in looks[len(looks) // 2:]])
    growth = (last - first) / first if share else last - first
    text = f"{100 * growth:+.2f} %" if share else f"{growth:+.1f}"
    allowed = f"{100 * most:g} %" if share else f"{most:g}"
    print(f"{name}: {first:.1f} -> {last:.1f} {unit} over the second half, {text} (allowed {allowed})")
    return growth <= most


def watch(process, traffic, seconds):
    looks, start = [], time.monotonic()
    pause = max(1.0, seconds / 60)
    while time.monotonic() - start < seconds and process.poll() is None:
        lowest_mb = lowest_resident_mb(process, pause)
        with traffic.lock:
            times, traffic.times = traffic.times, []
        if not times or process.poll() is not None:
            continue
        look = {"s": round(time.monotonic() - start, 1), "lowest_resident_mb": round(lowest_mb, 1),
                "descriptors": len(os.listdir(f"/proc/{process.pid}/fd")),
                "threads": len(os.listdir(f"/proc/{process.pid}/task")),
                "chats": len(times), "ms_a_chat": round(1000 * sum(times) / len(times), 1)}
        looks.append(look)
        print(json.dumps(look), flush=True)
    return looks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--binary", default=str(ROOT / "build/release/bicached"))
    parser.add_argument("--model", default=str(ROOT / "models/demo"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--prefixes", type=int, default=2000)
    parser.add_argument("--max-memory-growth", type=float, default=0.01, help="share, over the second half")
    parser.add_argument("--max-time-growth", type=float, default=0.5, help="share; a shared machine is no clock")
    args = parser.parse_args()

    # A small budget is full soon, so that what grows later is a leak.
    process = subprocess.Popen(
        [args.binary, "serve", "--model", args.model, "--port", str(args.port), "--cache-bytes", str(64 << 20),
         "--log-level", "error", "--integrity-checks"], stdout=subprocess.PIPE, text=True)
    try:
        address = next((m for m in (re.search(r"http://127\.0\.0\.1:(\d+)", line) for line in process.stdout) if m), None)
        if not address:
            print("the server did not start")
            return 1
        traffic = Traffic(int(address.group(1)), args.prefixes)
        threads = [threading.Thread(target=traffic.run, args=(i,), daemon=True) for i in range(args.clients)]
        for thread in threads:
            thread.start()
        looks = watch(process, traffic, 60 * args.minutes)
        lives = process.poll() is None
        traffic.stop.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)

    print("counts:", {f"{kind} {status}": n for (kind, status), n in sorted(traffic.counts.items(), key=str)})
    holds = [lives and status == 0, not traffic.unexpected, len(looks) >= 8]
    if not holds[0]:
        print(f"the server ended by itself, or badly: status {status}")
    if traffic.unexpected:
        print("unexpected:", traffic.unexpected[:5])
    if holds[2]:
        holds.append(grew("memory", "MB", looks, "lowest_resident_mb", args.max_memory_growth, True))
        holds.append(grew("open files", "", looks, "descriptors", args.clients, False))
        holds.append(grew("threads", "", looks, "threads", 2, False))
        holds.append(grew("a chat", "ms", looks, "ms_a_chat", args.max_time_growth, True))
    else:
        print("too few looks at it")
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
