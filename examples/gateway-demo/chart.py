#!/usr/bin/env python3
"""What the demonstration saw, as a chart and as a table. It measures nothing: chart.py SAMPLES.json > CHART.svg"""

import html
import json
import statistics
import sys
from dataclasses import dataclass

WIDTH, LEFT, RIGHT = 960, 64, 16
PANEL, GAP, TOP, BOTTOM = 118, 34, 92, 34
CAPTION_ROWS = 4

STYLE = """
  svg { color-scheme: light dark; font: 12px system-ui, sans-serif; }
  .paper { fill: #ffffff } .ink { fill: #1f2328 } .faint { fill: #59636e } .grid { stroke: #d1d9e0; stroke-width: 1 }
  .mark { stroke: #818b98; stroke-width: 1; stroke-dasharray: 3 3 } .line { fill: none; stroke-width: 1.8; stroke-linejoin: round }
  .a { stroke: #0969da } .b { stroke: #bc4c00 } .thin { stroke-width: 1.2; opacity: .8 } .key-a { fill: #0969da } .key-b { fill: #bc4c00 }
  .bar { fill: #cf222e } .limit { stroke: #1a7f37; stroke-dasharray: 6 4; opacity: .7 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } .ink { fill: #e6edf3 } .faint { fill: #9198a1 } .grid { stroke: #2f3742 } .mark { stroke: #7d8590 }
    .a { stroke: #58a6ff } .b { stroke: #f0883e } .key-a { fill: #58a6ff } .key-b { fill: #f0883e } .bar { fill: #ff7b72 } .limit { stroke: #3fb950 }
  }
"""


@dataclass
class Sample:
    """What was seen at one moment, seconds after the beginning; None is a gap."""

    at: float
    ready: int | None = None
    desired: int | None = None
    utilization: float | None = None
    machine: float | None = None
    cores: float | None = None
    p50: float | None = None
    p99: float | None = None
    failed: int = 0


@dataclass
class Mark:
    """Something was done."""

    at: float
    caption: str


class Panel:
    """One of the charts that lie above each other: from a time and a value to a place."""

    def __init__(self, number: int, span: float, top_value: float):
        self.top = TOP + number * (PANEL + GAP)
        self.span, self.top_value = span, top_value

    def x(self, at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at / self.span

    def y(self, value: float) -> float:
        return self.top + PANEL * (1 - min(value, self.top_value) / self.top_value)

    def frame(self, title: str, ticks: list[tuple[float, str]]) -> str:
        out = f'<text class="ink" x="{LEFT}" y="{self.top - 8}" font-weight="600">{title}</text>'
        for value, label in ticks:
            y = self.y(value)
            out += f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            out += f'<text class="faint" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        return out + "\n"

    def line(self, points: list[tuple[float, float | None]], style: str, steps: bool = False) -> str:
        """Through all points; a gap breaks it."""
        path, pen, last = "", "M", None
        for at, value in points:
            if value is None:
                pen = "M"
                continue
            x, y = self.x(at), self.y(value)
            if steps and pen == "L" and y != last:
                path += f"H{x:.1f}V{y:.1f}"
            elif not steps or pen == "M" or at == points[-1][0]:
                path += f"{pen}{x:.1f} {y:.1f}"
            pen, last = "L", y
        return f'<path class="line {style}" d="{path}"/>\n'

    def keys(self, keys: list[tuple[str, str]]) -> str:
        x, out = WIDTH - RIGHT, ""
        for style, text in reversed(keys):
            out += f'<text class="{style}" x="{x}" y="{self.top - 8}" text-anchor="end">{text}</text>'
            x -= 7 * len(text) + 16
        return out + "\n"


def nice(value: float) -> float:
    """The next round number above."""
    for top in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000):
        if value <= top:
            return top
    return 10_000


def svg(samples: list[Sample], marks: list[Mark], workers_max: int) -> str:
    """The chart."""
    span = samples[-1].at
    height = TOP + 4 * (PANEL + GAP) - GAP + BOTTOM
    out = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
    out += "<title>Workers, CPU, latency and failed requests of a fleet that follows the load</title>\n"
    out += f"<style>{STYLE}</style>\n"
    out += f'<rect class="paper" width="{WIDTH}" height="{height}"/>\n'

    panel = Panel(0, span, workers_max)
    out += panel.frame("Workers", [(n, str(n)) for n in range(0, workers_max + 1, 2)])
    out += panel.line([(s.at, s.desired) for s in samples], "b thin", steps=True)
    out += panel.line([(s.at, s.ready) for s in samples], "a", steps=True)
    out += panel.keys([("key-a", "ready"), ("key-b", "wanted")])

    panel = Panel(1, span, 1.0)
    out += panel.frame("CPU", [(n / 4, f"{n * 25} %") for n in range(5)])
    out += f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{panel.y(0.8):.1f}" y2="{panel.y(0.8):.1f}"/>\n'
    out += panel.line([(s.at, s.machine) for s in samples], "b thin")
    out += panel.line([(s.at, s.utilization) for s in samples], "a")
    out += panel.keys([("key-a", "of what the workers can use"), ("key-b", "of the machine"), ("faint", "grows above 80 %")])

    worst = max((s.p99 for s in samples if s.p99 is not None), default=1) * 1000
    panel = Panel(2, span, nice(worst))
    out += panel.frame("Latency through HAProxy, ms", [(panel.top_value * n / 4, f"{panel.top_value * n / 4:g}") for n in range(5)])
    out += panel.line([(s.at, s.p99 and s.p99 * 1000) for s in samples], "b thin")
    out += panel.line([(s.at, s.p50 and s.p50 * 1000) for s in samples], "a")
    out += panel.keys([("key-a", "p50"), ("key-b", "p99")])

    panel = Panel(3, span, nice(max(s.failed for s in samples)))
    out += panel.frame(f"Failed requests: {sum(s.failed for s in samples)} in all", [(0, "0"), (panel.top_value, f"{panel.top_value:g}")])
    for s in samples:
        if s.failed:
            out += f'<rect class="bar" x="{panel.x(s.at) - 1.5:.1f}" y="{panel.y(s.failed):.1f}" width="3" height="{panel.y(0) - panel.y(s.failed):.1f}"/>\n'

    bottom = panel.top + PANEL
    for seconds in range(0, int(span) + 1, 20):
        out += f'<text class="faint" x="{panel.x(seconds):.1f}" y="{bottom + 18}" text-anchor="middle">{seconds} s</text>\n'
    for number, mark in enumerate(marks):
        x, row = panel.x(mark.at), number % CAPTION_ROWS
        y = 16 + 14 * row
        side = ("end", -4) if x > WIDTH - 170 else ("start", 4)
        out += f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 9}" y2="{bottom}"/>'
        out += f'<text class="ink" x="{x + side[1]:.1f}" y="{y}" text-anchor="{side[0]}">{html.escape(mark.caption)}</text>\n'
    return out + "</svg>\n"


def table(rows: list[tuple[int, list[Sample]]]) -> str:
    """Users at once, and what the fleet was by then."""
    out = "| users at once | workers | latency p50 | p99 | CPU of the workers | cores used |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n"
    for users, samples in rows:
        middle = lambda key: statistics.median(n for n in (getattr(s, key) for s in samples) if n is not None)
        out += (
            f"| {users} | {middle('ready'):g} | {middle('p50') * 1000:.0f} ms | {middle('p99') * 1000:.0f} ms | "
            f"{middle('utilization') * 100:.0f} % | {middle('cores'):.2f} |\n"
        )
    return out


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        seen = json.load(file)
    print(svg([Sample(**one) for one in seen["samples"]], [Mark(**one) for one in seen["marks"]], seen["workers_max"]), end="")
