"""The chart of `compare.py`: rates and latencies as bars on logarithmic scales, an SVG for light and dark pages.

    python benchmarks/compare_chart.py FIGURES.json docs/compare.svg        from what ``compare.py --json`` printed

Theory of operation: a row for each system, the quickest first; a panel for each figure, with one bar a row and its value beside it.  Text
and colours come from CSS in the file, which the page's colour scheme switches; the background is the page's own.  Values have a rim of the
usual background's colour, so that lines of the scale do not cross them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

#: Pixels of the drawing: it scales.
WIDTH, ROW, BAR, HEAD, FOOT = 860, 27, 17, 66, 52
NAMES, GAP, VALUES = 214, 26, 62

STYLE: Final = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-weight: 600; } .small { font-size: 11px; fill: #59636e; } .ours { font-weight: 600; }
.value { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: #d1d9e0; stroke-width: 1; } .bar { fill: #8c959f; } .bar.ours { fill: #0969da; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; } .value { stroke: #0d1117; } .small { fill: #9198a1; }
.grid { stroke: #3d444d; } .bar { fill: #7d8590; } .bar.ours { fill: #4493f8; }
}"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of all systems."""

    title: str
    key: str
    text: Callable[[float], str]


def microseconds(value: float) -> str:
    """A time in the unit that suits it, with a digit after the point where there is one before it."""
    number, unit = (value, "µs") if value < 999.5 else (value / 1e3, "ms") if value < 999.5e3 else (value / 1e6, "s")
    return f"{round(number, 1 if number < 10 else 0):g} {unit}"


def count(value: float) -> str:
    return f"{value:,.0f}"


PANELS: Final = (
    Panel("calls per second (more is better)", "calls_per_s", count),
    Panel("latency of one call, p50 (less is better)", "p50_us", microseconds),
)


def powers(values: Sequence[float]) -> range:
    """Exponents of the powers of ten around the values; at least one decade."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return range(low, max(high, low + 1) + 1)


def panel_lines(panel: Panel, systems: Sequence[tuple[str, Mapping[str, Any]]], left: float, width: float) -> list[str]:
    """One panel; the scale begins at the power of ten below the least value, and its last power is where the longest bar may end."""
    values = [float(system[panel.key]) for _, system in systems]
    exponents, bottom = powers(values), HEAD + ROW * len(systems)
    step = (width - VALUES) / (len(exponents) - 1)
    lines = [f'<text class="title" x="{left:.1f}" y="34">{escape(panel.title)}</text>']
    for at, exponent in enumerate(exponents):
        x = left + at * step
        lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEAD - 6}" y2="{bottom}"/>')
        lines.append(f'<text class="small" x="{x:.1f}" y="{HEAD - 12}" text-anchor="middle">{escape(panel.text(10.0**exponent))}</text>')
    for row, ((key, _), value) in enumerate(zip(systems, values, strict=True)):
        kind = " ours" if key == "windlass" else ""
        length = max(2.0, (math.log10(value) - exponents[0]) * step)
        top = HEAD + ROW * row
        lines.append(f'<rect class="bar{kind}" x="{left:.1f}" y="{top + 4}" width="{length:.1f}" height="{BAR}" rx="2"/>')
        lines.append(f'<text class="value{kind}" x="{left + length + 6:.1f}" y="{top + 17}">{escape(panel.text(value))}</text>')
    return lines


def chart(figures: Mapping[str, Any]) -> str:
    """The SVG's text."""
    systems = sorted(figures["systems"].items(), key=lambda item: -item[1]["calls_per_s"])
    height = HEAD + ROW * len(systems) + FOOT
    spoken = ", ".join(f"{system['title']}: {count(system['calls_per_s'])} calls per second" for _, system in systems)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>{escape(spoken)}</title>",
        f"<style>{STYLE}</style>",
    ]
    for row, (key, system) in enumerate(systems):
        kind = "ours" if key == "windlass" else ""
        lines.append(
            f'<text class="{kind}" x="{NAMES - 12}" y="{HEAD + ROW * row + 17}" text-anchor="end">{escape(system["title"])}</text>'
        )
    width = (WIDTH - NAMES - GAP * (len(PANELS) - 1)) / len(PANELS)
    for at, panel in enumerate(PANELS):
        lines += panel_lines(panel, systems, NAMES + at * (width + GAP), width)
    facts = figures["machine"]
    encrypted = ", ".join(system["title"] for _, system in systems if system["encrypted"])
    notes = (
        f"Calls that return their argument, two workers on one machine; logarithmic scales. Encrypted: {encrypted}.",
        f"{figures['date']}, {facts['cores']} cores, {facts['cpu']}, CPython {facts['python']}; medians of {figures['rounds']} rounds.",
    )
    for at, note in enumerate(notes):
        lines.append(f'<text class="small" x="12" y="{height - 26 + 16 * at}">{escape(note)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def draw(figures: Mapping[str, Any], file: Path) -> None:
    """Write the chart of what ``compare.py --json`` prints."""
    file.write_text(chart(figures))


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
