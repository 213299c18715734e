"""The programs that tests run: those of build/release, or of the folder of the one that BICACHED_BINARY names."""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = os.environ.get("BICACHED_BINARY", str(ROOT / "build" / "release" / "bicached"))
LAB = str(pathlib.Path(PROGRAM).with_name("bicached-lab"))
# Without our own variables: the program refuses those it doesn't know.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("BICACHED_")}
DEMO = ROOT / "models" / "demo"
PRICES = json.loads((DEMO / "example_messages.json").read_text())


def run(*arguments, program=PROGRAM, env=None, stdin=""):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, input=stdin, timeout=600,
                          env={**ENVIRONMENT, **(env or {})})


def fails(*arguments, program=PROGRAM, **more):
    done = run(*arguments, program=program, **more)
    assert done.returncode == 2, done
    assert done.stderr.startswith(pathlib.Path(program).name + ": ")
    return done.stderr


def start_server(*arguments):
    server = subprocess.Popen([PROGRAM, "serve", "--model", str(DEMO), *arguments], stdout=subprocess.PIPE, text=True,
                              env=ENVIRONMENT)
    lines = [server.stdout.readline(), server.stdout.readline()]
    return server, lines
