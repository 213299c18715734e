#!/usr/bin/env python3
"""Rooms include only leftwards; torch stays where it belongs; public headers need nothing of ours.

check_rooms.py [ROOT]   prints one line for each include that breaks a rule, exits with 1 if any does.
"""

import pathlib
import re
import sys

# Two wings, what needs no torch and what does, meet in include/bicached/denoiser.h; programs see both.
ROOMS = ["base", "config", "text", "cache_index", "decode", "engine", "http", "model", "cache", "denoise", "app", "lab"]
TORCH_ROOMS = {"model", "cache", "denoise", "app", "lab"}
# A library inside a room: the rooms it may include, beside itself.
LIBRARIES = {"text/jinja": {"base"}}
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
STANDARD = re.compile(r"^[a-z0-9_]+$")
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:<([^>]+)>|"([^"]+)")', re.MULTILINE)


def includes(path):
    """(system?, name) of every include of a file."""
    for system, own in INCLUDE.findall(path.read_text(encoding="utf-8")):
        yield bool(system), system or own


def broken_room_rules(name, room, path):
    for system, included in includes(path):
        other = included.split("/")[0]
        if not system and other in ROOMS and ROOMS.index(other) > ROOMS.index(room):
            yield f"{name}: includes {included}: {room} comes before {other}"
        if not system and other not in ROOMS and other != "bicached" and not (path.parent / included).exists():
            yield f"{name}: includes {included}: not a room, nor a public header"
        if TORCH.match(included) and room not in TORCH_ROOMS:
            yield f"{name}: includes {included}: no torch here"


def broken_library_rules(name, path):
    for library, rooms in LIBRARIES.items():
        if name.startswith(f"src/{library}/"):
            for system, included in includes(path):
                if not system and included.split("/")[0] not in rooms and not included.startswith(f"{library}/"):
                    yield f"{name}: includes {included}: {library} takes only {', '.join(sorted(rooms))}"


def broken_header_rules(name, path):
    for system, included in includes(path):
        if system and not STANDARD.match(included):
            yield f"{name}: includes <{included}>: a public header takes only the standard library"
        if not system and not included.startswith("bicached/"):
            yield f"{name}: includes {included}: a public header takes only public headers"


def broken_rules(root):
    for path in sorted((root / "src").rglob("*.*")):
        name = path.relative_to(root).as_posix()
        room = path.relative_to(root / "src").parts[0]
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
            continue
        if room not in ROOMS:
            yield f"{name}: {room} is not a room; known are {', '.join(ROOMS)}"
            continue
        yield from broken_room_rules(name, room, path)
        yield from broken_library_rules(name, path)
    for path in sorted((root / "include").rglob("*.h")):
        yield from broken_header_rules(path.relative_to(root).as_posix(), path)


def main():
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent
    problems = list(broken_rules(root))
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
