"""The command `bicached` of a Python environment: the program, with the environment's libtorch."""

import importlib.util
import os
import pathlib
import sys


def main():
    if not os.environ.get("BICACHED_TORCH"):
        torch = importlib.util.find_spec("torch")
        if torch is None:
            sys.exit("bicached: this environment has no torch: pip install torch")
        os.environ["BICACHED_TORCH"] = torch.submodule_search_locations[0]
    program = pathlib.Path(__file__).parent / "bin" / "bicached"
    os.execv(program, ["bicached", *sys.argv[1:]])
