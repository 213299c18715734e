"""The commands `bicached` and `bicached-lab` of a Python environment: the programs, with the environment's libtorch."""

import importlib.util
import os
import pathlib
import sys


def launch(name):
    if not os.environ.get("BICACHED_TORCH"):
        torch = importlib.util.find_spec("torch")
        if torch is None:
            sys.exit(f"{name}: this environment has no torch: pip install torch")
        os.environ["BICACHED_TORCH"] = torch.submodule_search_locations[0]
    program = pathlib.Path(__file__).parent / "bin" / name
    os.execv(program, [name, *sys.argv[1:]])


def main():
    launch("bicached")


def lab():
    launch("bicached-lab")
