"""The poster's two-panel figure from what `evaluation.py` has measured:  python benchmarks/evaluation_figure.py docs/evaluation

One panel for each place of the environment; in each, seconds for all calls over the function's own time, a colour for each library, dashed
where each call imports and solid where imports are hoisted.  The grey line is what the functions alone take, divided by the slots.  Written
as figure.png and figure.svg.  Needs matplotlib.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from evaluation_cell import Setting
from evaluation_results import ENVIRONMENTS, Results

#: Of growing weight; they differ in lightness too, for who does not see the colours.
COLOURS: Final = ("#e69f00", "#56b4e9", "#009e73", "#7b2d8b")
STYLES: Final = {"call": ("--", "o", "white"), "library": ("-", "o", None)}
INK: Final = "#333333"


def seconds_label(value: float, _at: object = None) -> str:
    return f"{value:g}"


def panel(axes: Any, results: Results, environment: str) -> None:
    times, slots = results.times, results.points[0].run.slots
    axes.plot(
        times, [results.calls * one / slots for one in times], color="#999999", linewidth=5, alpha=0.45, solid_capstyle="round", zorder=1
    )
    for library, colour in zip(results.libraries, COLOURS, strict=False):
        for imports, (line, marker, face) in STYLES.items():
            measured = results.times_of(library)
            took = [results.seconds(Setting(library, imports, environment, one)) for one in measured]
            axes.plot(
                measured, took, line, color=colour, marker=marker, markersize=5, markerfacecolor=face or colour, linewidth=1.6, zorder=2
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(times, [seconds_label(one) for one in times])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(seconds_label)
    place = "on the shared file system" if environment == "shared" else "in the worker's cache"
    axes.set_title(f"environment {place}", fontsize=11, color=INK)
    axes.set_xlabel("function's own time, s")
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.tick_params(length=0, colors=INK)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def legend(figure: Any, results: Results, lines: Any) -> None:
    """Libraries and ways, below the panels."""
    handles = [
        lines.Line2D([], [], color=colour, linewidth=4, label=library) for library, colour in zip(results.libraries, COLOURS, strict=False)
    ]
    ways = (("call", "imports in each call"), ("library", "imports hoisted"))
    for imports, label in ways:
        line, marker, face = STYLES[imports]
        handles.append(
            lines.Line2D([], [], color=INK, linestyle=line, marker=marker, markersize=5, markerfacecolor=face or INK, label=label)
        )
    handles.append(lines.Line2D([], [], color="#999999", linewidth=5, alpha=0.45, label="the functions alone"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9, handlelength=2.2, columnspacing=1.6)


def draw(results: Results, folder: Path) -> None:
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "windlass"  # the same results give the same file
    plot: Any = import_module("matplotlib.pyplot")
    figure, panels = plot.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    for axes, environment in zip(panels, ENVIRONMENTS, strict=True):
        panel(axes, results, environment)
    panels[0].set_ylabel(f"seconds for {results.calls} calls")
    run = results.points[0].run
    figure.suptitle(
        f"{results.calls} calls on {run.nodes} nodes of {run.slots // run.nodes} slots; "
        f"shared file system with {results.delay * 1e3:g} ms for each metadata operation",
        fontsize=10,
        color=INK,
        y=0.985,
    )
    figure.subplots_adjust(left=0.075, right=0.985, top=0.86, bottom=0.235, wspace=0.06)
    legend(figure, results, import_module("matplotlib.lines"))
    figure.savefig(folder / "figure.png", dpi=150)
    figure.savefig(folder / "figure.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(Results.load(Path(sys.argv[1], "results.json")), Path(sys.argv[1]))
