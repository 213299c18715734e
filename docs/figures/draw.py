#!/usr/bin/env python3
"""Draws the figures of README and docs into this folder; needs matplotlib.

    .venv/bin/python docs/figures/draw.py

The two diagrams are drawn from what is written here. The plots read their numbers from the tables of
docs/measurements/2026-11.md, so that each number stands in one place.
"""

import pathlib
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

FOLDER = pathlib.Path(__file__).resolve().parent
MEASUREMENTS = FOLDER.parent / "measurements" / "2026-11.md"

RUNS = "#2f6db5"  # cells that this forward computes
STORED = "#8cc5a2"  # keys and values of a stored prefix
KEPT = "#d9d9d9"  # keys and values of an earlier forward of the same request
LAYERS = 8
WHAT = {RUNS: "computed in this forward", STORED: "from the stored prefix",
        KEPT: "as an earlier forward of the request left it"}


def cell(axes, begin, end, low, high, colour):
    """Rows [begin, end) of a canvas in the layers [low, high)."""
    for layer in range(low, high):
        for row in range(begin, end):
            axes.add_patch(Rectangle((row, layer), 0.92, 0.92, color=colour, linewidth=0))


def canvas(axes, parts, groups):
    """`parts`: (name, length); `groups`: (begin, end, low, high, colour)."""
    begin = 0
    for name, length in parts:
        axes.text(begin + length / 2, -0.35, name, ha="center", va="top", fontsize=8)
        axes.plot([begin + 0.05, begin + length - 0.15], [-0.18] * 2, color="black", linewidth=0.8)
        begin += length
    for group in groups:
        cell(axes, *group)
    axes.set_xlim(-0.6, begin + 0.2)
    axes.set_ylim(-1.1, LAYERS + 0.2)
    axes.set_aspect("equal")
    axes.axis("off")


def mark_layer(axes, layer, text):
    axes.plot([-0.5, -0.05], [layer - 0.04] * 2, color="black", linewidth=1.2)
    axes.text(-0.65, layer - 0.04, text, ha="right", va="center", fontsize=8)


def mark_layer_axis(axes, middle):
    axes.text(-0.7, middle, "layers \N{RIGHTWARDS ARROW}", rotation=90, ha="right", va="center", fontsize=8)


def add_key(figure, colours, y):
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
    figure.legend(handles, [WHAT[colour] for colour in colours], loc="lower center", ncol=3,
                  frameon=False, fontsize=8.5, bbox_to_anchor=(0.5, y))


def save(figure, name):
    figure.savefig(FOLDER / name, dpi=160, bbox_inches="tight", facecolor="white",
                   metadata={"Software": None})
    plt.close(figure)


def draw_row_groups():
    """One packed forward of three requests that stand at different points."""
    prefix, question, answer = 7, 3, 6
    end = prefix + question + answer
    parts = [("prefix", prefix), ("question", question), ("answer", answer)]
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 2.7), gridspec_kw={"wspace": 0.16})
    canvas(axes[0], parts, [(0, end, 0, LAYERS, RUNS)])
    axes[0].set_title("request A: no reuse", fontsize=9.5)
    depth = 3
    canvas(axes[1], parts, [(0, prefix, 0, depth, STORED), (0, prefix, depth, LAYERS, RUNS),
                            (prefix, end, 0, LAYERS, RUNS)])
    axes[1].set_title("request B: its prefix is stored", fontsize=9.5)
    mark_layer(axes[1], depth, "depth")
    block = end - 3
    canvas(axes[2], [("prefix", prefix), ("question", question), ("done", 3), ("block", 3)],
           [(0, block, 0, LAYERS, KEPT), (block, end, 0, LAYERS, RUNS)])
    axes[2].set_title("request C: inside a block", fontsize=9.5)
    mark_layer_axis(axes[0], LAYERS / 2)
    add_key(figure, [RUNS, STORED, KEPT], 0.0)
    save(figure, "row-groups.png")


def draw_prefix_in_time():
    """Forwards of one request: depth, reuse inside the request, refresh."""
    prefix, question, answer = 5, 2, 4
    end = prefix + question + answer
    rest = prefix + question
    depth, from_layer = 4, 2
    parts = [("prefix", prefix), ("question", question), ("answer", answer)]
    figure, axes = plt.subplots(1, 4, figsize=(14, 2.7), gridspec_kw={"wspace": 0.24})
    canvas(axes[0], parts, [(0, prefix, 0, depth, STORED), (0, prefix, depth, LAYERS, RUNS),
                            (prefix, end, 0, LAYERS, RUNS)])
    axes[0].set_title("forward 1", fontsize=9.5)
    mark_layer(axes[0], depth, "depth")
    for index, name in ((1, "forward 2"), (2, "forward 3")):
        canvas(axes[index], parts,
               [(0, prefix, 0, depth, STORED), (0, prefix, depth, LAYERS, KEPT),
                (prefix, rest, 0, LAYERS, KEPT), (rest, end, 0, LAYERS, RUNS)])
        axes[index].set_title(name, fontsize=9.5)
    canvas(axes[3], parts,
           [(0, prefix, 0, depth, STORED), (0, prefix, depth, LAYERS, RUNS),
            (prefix, rest, 0, from_layer, KEPT), (prefix, rest, from_layer, LAYERS, RUNS),
            (rest, end, 0, LAYERS, RUNS)])
    axes[3].set_title("forward 4: a refresh", fontsize=9.5)
    mark_layer(axes[3], from_layer, "refresh\ndepth")
    mark_layer_axis(axes[0], LAYERS - 1.5)
    add_key(figure, [RUNS, STORED, KEPT], 0.0)
    save(figure, "prefix-in-time.png")


def read_table(heading):
    """Rows of the first table under a heading of the measurements, header first."""
    text = MEASUREMENTS.read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    first = re.search(r"(?:^\|.+\|\n)+", section, re.MULTILINE).group()
    rows = re.findall(r"^\|(.+)\|$", first, re.MULTILINE)
    table = [[field.strip().strip("`") for field in row.split("|")] for row in rows]
    return [row for row in table if not re.fullmatch(r":?-+:?", row[0])]


def draw_algorithms():
    """Work of each algorithm, with its right answers."""
    rows = [(name, int(right), float(work.replace(",", "")))
            for name, _, right, work in read_table("Decoding algorithms")[1:]]
    rows.sort(key=lambda row: row[2])
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    bars = axes.barh([row[0] for row in rows], [row[2] for row in rows], color=RUNS)
    axes.bar_label(bars, [f"{row[1]} of 50 right" for row in rows], padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 41000)
    axes.set_xlabel("row-layers a question", fontsize=8.5)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "algorithms.png")


def draw_orders():
    """Row-layers of `measured` against the better of two other ways, by order of traffic."""
    header, *rows = read_table("Six orders of traffic, other questions")
    orders = [row[0] for row in rows]
    series = {}
    for column, name in enumerate(header[1:], 1):
        series[name] = [float(row[column].split(",")[1]) for row in rows]
    figure, axes = plt.subplots(figsize=(7.6, 3.4))
    colours = plt.get_cmap("tab10").colors
    for index, (name, values) in enumerate(series.items()):
        places = [place + (index - len(series) / 2) * 0.1 for place in range(len(orders))]
        axes.plot(values, places, "o", color=colours[index], label=name, markersize=5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(orders)), orders, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlabel("row-layers of measured, x the better of off and fixed:0 (less is better)", fontsize=8.5)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 0.18))
    save(figure, "orders.png")


if __name__ == "__main__":
    draw_row_groups()
    draw_prefix_in_time()
    draw_algorithms()
    draw_orders()
