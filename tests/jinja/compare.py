#!/usr/bin/env python3
"""Chat templates rendered by Python's jinja2 and by this engine.

compare.py render PROGRAM FOLDER       renders every *.jinja of FOLDER over conversations in both and counts
compare.py features FOLDER             counts in how many templates each feature of the language occurs
compare.py record FILE                 writes jinja2's answers into FILE's rows (tests/jinja/language.json)

PROGRAM is the build's jinja_render. Needs the Python package jinja2 (measured with 3.1.6).
"""

import collections
import datetime
import functools
import json
import pathlib
import subprocess
import sys
import tempfile

from jinja2 import ext, nodes, sandbox

NOW = datetime.datetime(2026, 3, 5, 12, 34, 56)


class Generation(ext.Extension):
    """The tag that marks what the model wrote: a scope, as far as text goes."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Raised(Exception):
    pass


def environment():
    """As transformers' apply_chat_template makes it."""
    env = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise Raised(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


@functools.lru_cache(maxsize=1)
def compiled(env, source):
    return env.from_string(source)


def answer(env, source, values):
    """{"text"} or {"error"}: what jinja2 makes of it."""
    try:
        return {"text": compiled(env, source).render(**values)}
    except Raised as e:
        return {"error": str(e), "raised": True}
    except Exception as e:  # whatever a template can bring about
        return {"error": f"{type(e).__name__}: {e}"}


def conversations():
    """Name and messages, with what belongs to them."""
    user = {"role": "user", "content": "What is 2+2? <b>&\"quoted\"</b>\n\n  indented é 你好  "}
    system = {"role": "system", "content": "  You are a careful helper.\nBe brief. "}
    reply = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nIt is 4.\n"}
    again = {"role": "user", "content": "And 3+3?"}
    call = {"id": "call00001", "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 3, "units": None, "exact": True, "share": 0.5}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    two_calls = {"role": "assistant", "content": "I look.", "reasoning_content": "Two places.", "tool_calls": [
        call, {"id": "call00002", "type": "function", "function": {"name": "get_time", "arguments": {"zone": "CET", "list": [1, "a"]}}}]}
    result = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "{\"temp\": 7}"}
    second = {"role": "tool", "tool_call_id": "call00002", "name": "get_time", "content": "12:00"}
    tools = [
        {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": {
            "type": "object", "required": ["city"], "properties": {
                "city": {"type": "string", "description": "City's name"},
                "days": {"type": "integer", "default": 1},
                "kind": {"type": "string", "enum": ["now", "later"]},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": ["number", "null"]}}},
                "tags": {"type": "array", "items": {"type": "string"}}}},
            "return": {"type": "string"}}},
        {"type": "function", "function": {"name": "get_time", "description": "The time in a zone.", "parameters": {
            "type": "object", "properties": {"zone": {"type": "string"}}}}},
    ]
    parts = [{"type": "text", "text": "Describe "}, {"type": "text", "text": "this text."}]
    textual = json.loads(json.dumps(calling))
    textual["tool_calls"][0]["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    flat = {"role": "assistant", "content": None, "tool_calls": [{"name": "get_weather", "arguments": {"city": "Bern"}}]}
    return {
        "user": ([user], {}),
        "system": ([system, user], {}),
        "turns": ([system, user, reply, again], {}),
        "turns without system": ([user, reply, again], {}),
        "ends with assistant": ([user, reply], {}),
        "reasoning": ([user, {**reply, "content": "It is 4.", "reasoning_content": "Two and two."}, again], {"enable_thinking": False}),
        "thinking on": ([user], {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}),
        "tools": ([user], {"tools": tools}),
        "system and tools": ([system, user, reply, again], {"tools": tools}),
        "tool call": ([system, user, calling, result, {"role": "assistant", "content": "7 degrees."}, again], {"tools": tools}),
        "two tool calls": ([user, two_calls, result, second], {"tools": tools}),
        "tool call's arguments as text": ([user, textual, result], {"tools": tools}),
        "a flat tool call": ([user, flat, result], {"tools": tools}),
        "parts": ([{"role": "user", "content": parts}], {}),
        "all in parts": ([{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in (system, user, reply, again)], {}),
        "image": ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}], {}),
        "documents": ([system, user], {"documents": [{"title": "A", "text": "First."}, {"title": "B", "text": "Second."}]}),
        "developer": ([{"role": "developer", "content": "Short answers."}, user], {"tools": tools}),
        "unknown role": ([user, {"role": "critic", "content": "Hm."}, again], {}),
        "two users": ([user, again], {}),
        "empty content": ([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, again], {}),
    }


def rows_of(source):
    for name, (messages, extra) in conversations().items():
        for add_generation_prompt in (False, True):
            values = {"messages": messages, "tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>",
                      "add_generation_prompt": add_generation_prompt, **extra}
            yield name, {"template": source, "globals": values}


def run_engine(program, rows):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(rows, file)
        file.flush()
        out = subprocess.run([program, file.name], capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.split("\n") if line]


def verdict(want, got):
    if "text" in want:
        if "text" in got:
            return "same text" if want["text"] == got["text"] else "OTHER TEXT"
        return "refused by name" if got["failure"] in ("unsupported", "limit") else "FAILED"
    if "text" in got:
        return "RENDERED what jinja2 refuses"
    if want.get("raised") and got["failure"] == "raised" and got["message"] != want["error"]:
        return "OTHER MESSAGE"
    return "both refuse"


def render(program, folder):
    env = environment()
    counts, refused, wrong, clean = collections.Counter(), collections.defaultdict(set), [], 0
    files = sorted(pathlib.Path(folder).glob("*.jinja"))
    for path in files:
        named = list(rows_of(path.read_text(encoding="utf-8")))
        answers = [answer(env, row["template"], row["globals"]) for _, row in named]
        results = run_engine(program, [row for _, row in named])
        verdicts = [verdict(want, got) for want, got in zip(answers, results, strict=True)]
        counts.update(verdicts)
        clean += all(v in ("same text", "both refuse") for v in verdicts)
        for (name, _), want, got, v in zip(named, answers, results, verdicts, strict=True):
            if v == "refused by name":
                refused[got["message"]].add(path.name)
            elif v not in ("same text", "both refuse"):
                wrong.append(f"{path.name}: {name}: {v}: {got} instead of {want}")
    for line in wrong:
        print(line[:1500])
    for message, names in sorted(refused.items()):
        print(f"refused: {message}: {len(names)} templates: {', '.join(sorted(names)[:4])}")
    print(f"{len(files)} templates, {clean} of them the same in all; " + ", ".join(f"{n} {v}" for v, n in counts.most_common()))
    return 1 if wrong else 0


OPERATORS = (nodes.BinExpr, nodes.UnaryExpr, nodes.Concat, nodes.CondExpr, nodes.Slice, nodes.Compare)
STATEMENTS = (nodes.If, nodes.For, nodes.Macro, nodes.AssignBlock, nodes.FilterBlock, nodes.With, nodes.Break, nodes.Continue,
              nodes.Include, nodes.Import, nodes.FromImport, nodes.Block, nodes.Extends)
GLOBALS = ("range", "dict", "namespace", "raise_exception", "strftime_now", "lipsum", "cycler", "joiner")


def signature(node):
    return "(" + ", ".join(["…"] * len(node.args) + [a.key + "=…" for a in node.kwargs]) + ")"


def features_of(tree):
    """(group, feature) of each node that is a choice of the template's author."""
    for node in tree.find_all(nodes.Node):
        kind = type(node)
        if kind is nodes.Filter:
            yield "filter", node.name
            yield "filter with arguments", node.name + signature(node)
            if node.name in ("map", "select", "reject", "selectattr", "rejectattr"):
                named = node.args[1:] if node.name.endswith("attr") else node.args
                if named and isinstance(named[0], nodes.Const):
                    yield ("filter in map" if node.name == "map" else "test in select"), named[0].value
        elif kind is nodes.Test:
            yield "test", node.name
        elif kind is nodes.Call and isinstance(node.node, nodes.Getattr):
            yield "method", node.node.attr + signature(node)
        elif kind is nodes.Call and isinstance(node.node, nodes.Name) and node.node.name in GLOBALS:
            yield "global", node.node.name
        elif kind is nodes.Call and (node.dyn_args or node.dyn_kwargs):
            yield "operator", "call with * or **"
        elif kind is nodes.Getattr and isinstance(node.node, nodes.Name) and node.node.name == "loop":
            yield "loop variable", node.attr
        elif kind is nodes.Assign:
            yield "statement", "set of a " + {"Name": "name", "NSRef": "namespace's attribute"}.get(type(node.target).__name__, "tuple")
        elif kind is nodes.CallBlock:
            is_generation = isinstance(node.call.node, nodes.ExtensionAttribute)
            yield "statement", "generation" if is_generation else "call"
        elif kind is nodes.Operand:
            yield "operator", {"eq": "==", "ne": "!=", "gt": ">", "lt": "<", "gteq": ">=", "lteq": "<=", "notin": "not in"}.get(node.op, node.op)
        elif kind is nodes.Const:
            yield "literal", type(node.value).__name__
        elif kind in (nodes.List, nodes.Dict, nodes.Tuple) and getattr(node, "ctx", "load") == "load":
            yield "literal", kind.__name__.lower()
        elif isinstance(node, STATEMENTS):
            yield "statement", kind.__name__.lower()
        if kind is nodes.For:
            if node.recursive:
                yield "statement", "for, recursive"
            if node.test:
                yield "statement", "for with if"
            if node.else_:
                yield "statement", "for with else"
            if isinstance(node.target, nodes.Tuple):
                yield "statement", "for with several names"
        if isinstance(node, OPERATORS):
            yield "operator", getattr(node, "operator", None) or {"CondExpr": "x if y else z", "Concat": "~", "Slice": "[a:b:c]"}.get(kind.__name__, "comparison")
            if kind is nodes.Compare and len(node.ops) > 1:
                yield "operator", "comparison of three"


def features(folder):
    env = environment()
    found, total = collections.defaultdict(set), 0
    for path in sorted(pathlib.Path(folder).glob("*.jinja")):
        total += 1
        source = path.read_text(encoding="utf-8")
        for feature in features_of(env.parse(source)):
            found[feature].add(path.name)
        if "{#" in source:
            found["statement", "comment"].add(path.name)
        if "endraw" in source:
            found["statement", "raw"].add(path.name)
    print(f"{total} templates")
    for group in sorted({g for g, _ in found}):
        ordered = sorted((-len(names), f) for (g, f), names in found.items() if g == group)
        print(f"{group}: " + ", ".join(f"`{f}` {-n}" for n, f in ordered))
    return 0


def record(path):
    env = environment()
    cases = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    for row in cases["rows"]:
        source = row["template"]
        row.clear()
        row.update({"template": source, **answer(env, source, cases["globals"])})
        row.pop("raised", None)
    pathlib.Path(path).write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    commands = {"render": render, "features": features, "record": record}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    sys.exit(commands[sys.argv[1]](*sys.argv[2:]))
