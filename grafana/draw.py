#!/usr/bin/env python3
"""Draws each dashboard with the data of a running Prometheus, as pictures for the documentation: same panels, same
places, same queries as Grafana would show, drawn without it.

    draw.py --prometheus URL --out ../docs/dashboards [--minutes 5]

Needs matplotlib.
"""

import argparse
import json
import re
import time
from datetime import datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as dates
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from check import asked, plain

HERE = Path(__file__).resolve().parent
PAPER, CARD, INK, FAINT, GRID = "#f4f5f7", "#ffffff", "#24292f", "#6e7781", "#e4e7eb"
COLOURS = ["#3f7cd9", "#e0813a", "#3f9f5f", "#b455c4", "#c8a21e", "#2fa3a8", "#d4526e", "#7a7f87", "#6b5bd2", "#93b23a"]
NAMED = {"green": "#3f9f5f", "blue": "#3f7cd9", "yellow": "#d9ae1c", "orange": "#e0813a", "red": "#cf3f4a", "purple": "#8a56c9", "dark-red": "#8f1d2a"}
CELL_WIDTH, CELL_HEIGHT, DPI = 0.62, 0.34, 84


def colour(name):
    return NAMED.get(name, name)


def shown(value, unit, decimals=None):
    """A number as a reader wants it."""
    if value is not None and decimals == 0:
        value = float(round(value))
    if value is None:
        return "–"
    if unit == "percentunit":
        return f"{value * 100:.{2 if decimals else 1 if value < 0.1 else 0}f} %"
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs" if value else "0"
    if unit == "bytes":
        for factor, word in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= factor:
                return f"{value / factor:.3g} {word}"
        return f"{value:.0f} B"
    per_second = {"reqps": "/s", "ops": "/s"}.get(unit, "")
    if abs(value) >= 10_000 and unit == "short":
        return f"{value / 1e3:.3g} k"
    return (f"{value:.0f}" if abs(value - round(value)) < 1e-9 else f"{value:.3g}") + per_second


def legend(template, metric):
    return re.sub(r"\{\{(\w+)\}\}", lambda m: metric.get(m[1], ""), template).strip() or "value"


class Data:
    def __init__(self, url, minutes, variables):
        self.url, self.variables, self.end = url, variables, time.time()
        self.start, self.step = self.end - 60 * minutes, 5
        # Nothing is drawn of the time before Prometheus ran.
        first = min((points[0][0] for _, points in self.series({"expr": "up"})), default=self.start)
        self.start = max(self.start, first)
        self.step = max(1, round((self.end - self.start) / 240))

    def series(self, target):
        found = asked(self.url, "query_range", query=plain(target["expr"], self.variables), start=self.start, end=self.end, step=self.step)["result"]
        for one in found:
            points = [(float(at), float(value)) for at, value in one["values"] if value not in ("NaN", "+Inf", "-Inf")]
            if points:
                yield legend(target.get("legendFormat", ""), one["metric"]), points

    def now(self, target):
        """The values at the end alone, as Grafana asks for the single figures."""
        for one in asked(self.url, "query", query=plain(target["expr"], self.variables), time=self.end)["result"]:
            if one["value"][1] not in ("NaN", "+Inf", "-Inf"):
                yield legend(target.get("legendFormat", ""), one["metric"]), float(one["value"][1])

    def marks(self, annotation):
        for _, points in self.series({"expr": annotation["expr"]}):
            # One line where a stretch of values begins.
            yield from (at for n, (at, _) in enumerate(points) if n == 0 or at - points[n - 1][0] > 2 * self.step)


def with_gaps(points, step):
    """Breaks the line where there was no data."""
    xs, ys = [], []
    for at, value in points:
        if xs and at - last > 3 * step:
            xs.append(datetime.fromtimestamp(at)), ys.append(float("nan"))
        xs.append(datetime.fromtimestamp(at)), ys.append(value)
        last = at
    return xs, ys


def time_axis(axes, data):
    axes.set_xlim(datetime.fromtimestamp(data.start), datetime.fromtimestamp(data.end))
    axes.xaxis.set_major_locator(dates.MinuteLocator(interval=max(1, round((data.end - data.start) / 240))))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.tick_params(labelsize=7, colors=FAINT, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def draw_lines(axes, panel, data, marks):
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults["custom"], defaults["unit"]
    found = [one for target in panel["targets"] for one in data.series(target)]
    found.sort(key=lambda one: one[0])
    if custom["stacking"]["mode"] != "none" and found:
        stamps = sorted({at for _, points in found for at, _ in points})
        rows = [[dict(points).get(at, 0.0) for at in stamps] for _, points in found]
        axes.stackplot([datetime.fromtimestamp(at) for at in stamps], rows, colors=[COLOURS[n % 10] for n in range(len(rows))], alpha=0.75, linewidth=0)
    for n, (_, points) in enumerate(found):
        if custom["stacking"]["mode"] == "none":
            xs, ys = with_gaps(points, data.step)
            if custom["drawStyle"] == "bars":
                axes.fill_between(xs, ys, step="mid", color=COLOURS[n % 10], alpha=0.7, linewidth=0)
            axes.plot(xs, ys, color=COLOURS[n % 10], linewidth=1.3, marker="." if len(points) == 1 else None)
    for at, tint in marks:
        axes.axvline(datetime.fromtimestamp(at), color=tint, linewidth=1, linestyle=(0, (3, 2)))
    top = max((value for _, points in found for _, value in points), default=0)
    axes.set_ylim(bottom=0, top=defaults.get("max") or (None if top > 0 else 1))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=unit == "none"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    time_axis(axes, data)
    if not found:
        axes.text(0.5, 0.5, "nothing to tell", transform=axes.transAxes, ha="center", va="center", color=FAINT, fontsize=9)
    entries = [(name, COLOURS[n % 10]) for n, (name, _) in enumerate(found)]
    return entries


def draw_states(axes, panel, data, _marks):
    meaning = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    found = sorted((one for target in panel["targets"] for one in data.series(target)), reverse=True)
    used = {}
    for row, (name, points) in enumerate(found):
        for at, value in points:
            word = meaning.get(str(int(value)), {"text": "?", "color": "#8e8e8e"})
            used[word["text"]] = colour(word["color"])
            axes.add_patch(Rectangle((dates.date2num(datetime.fromtimestamp(at)), row + 0.12), data.step / 86400 * 1.02, 0.76, color=colour(word["color"]), linewidth=0))
    axes.set_ylim(0, max(1, len(found)))
    axes.set_yticks([row + 0.5 for row in range(len(found))], [name for name, _ in found])
    time_axis(axes, data)
    return list(used.items())


def draw_number(axes, panel, data):
    defaults = panel["fieldConfig"]["defaults"]
    now = [one for target in panel["targets"] for one in data.now(target)]
    axes.axis("off")
    if panel["options"]["textMode"] == "name":
        text, tint = "\n".join(name for name, _ in now) or "–", colour(defaults["thresholds"]["steps"][0]["color"])
        axes.text(0.5, 0.5, text.replace(": ", ":\n"), ha="center", va="center", fontsize=11, color=tint, fontweight="bold", transform=axes.transAxes)
        return
    value = now[0][1] if now else None
    tint = INK
    for step in defaults["thresholds"]["steps"]:
        if value is not None and (step["value"] is None or value >= step["value"]):
            tint = colour(step["color"])
    axes.text(0.5, 0.5, shown(value, defaults["unit"], defaults.get("decimals")), ha="center", va="center", fontsize=19, color=tint, fontweight="bold", transform=axes.transAxes)


def draw(dashboard, data, path, note):
    columns, rows = 24, max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    width, height = columns * CELL_WIDTH, rows * CELL_HEIGHT + 0.6
    figure = plt.figure(figsize=(width, height), facecolor=PAPER)
    figure.text(0.008, 1 - 0.30 / height, dashboard["title"], fontsize=15, fontweight="bold", color=INK, va="center")
    figure.text(0.992, 1 - 0.30 / height, note, fontsize=9, color=NAMED["red"], va="center", ha="right")
    marks = [(at, colour(one["iconColor"])) for one in dashboard["annotations"]["list"] for at in data.marks(one)]
    to_x = lambda cells: cells / columns
    to_y = lambda cells: 1 - (cells * CELL_HEIGHT + 0.6) / height
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        left, top = to_x(grid["x"]), to_y(grid["y"])
        if panel["type"] == "row":
            figure.text(left + 0.008, (top + to_y(grid["y"] + 1)) / 2, panel["title"], fontsize=11, color=INK, va="center", fontweight="bold")
            continue
        bottom, right = to_y(grid["y"] + grid["h"]), to_x(grid["x"] + grid["w"])
        pad_x, pad_y = 0.06 / width, 0.05 / height
        figure.add_artist(Rectangle((left + pad_x, bottom + pad_y), right - left - 2 * pad_x, top - bottom - 2 * pad_y, facecolor=CARD, edgecolor=GRID, linewidth=0.8, zorder=-1))
        figure.text(left + 0.16 / width, top - 0.19 / height, panel["title"], fontsize=8.5, color=INK, va="center")
        if panel["type"] == "stat":
            draw_number(figure.add_axes([left, bottom, right - left, top - bottom - 0.25 / height]), panel, data)
            continue
        inner = [left + (0.95 if panel["type"] == "state-timeline" else 0.72) / width, bottom + 0.62 / height]
        axes = figure.add_axes([*inner, right - inner[0] - 0.2 / width, top - inner[1] - 0.38 / height], facecolor=CARD)
        entries = (draw_states if panel["type"] == "state-timeline" else draw_lines)(axes, panel, data, marks)
        # The legend on one line, as much as fits.
        place, room = left + 0.2 / width, right - 0.2 / width
        for name, tint in entries:
            size = (len(name) * 0.062 + 0.3) / width
            if place + size > room:
                figure.text(place, bottom + 0.2 / height, "…", fontsize=7, color=FAINT, va="center")
                break
            figure.add_artist(Rectangle((place, bottom + 0.17 / height), 0.1 / width, 0.07 / height, facecolor=tint, linewidth=0))
            figure.text(place + 0.15 / width, bottom + 0.2 / height, name, fontsize=7, color=FAINT, va="center")
            place += size
    figure.savefig(path, dpi=DPI, facecolor=PAPER, pil_kwargs={"optimize": True})
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--out", type=Path, default=HERE / "../docs/dashboards")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--note", action="append", default=[], metavar="DASHBOARD=TEXT", help="what a reader of that picture must know")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in sorted((HERE / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        data = Data(args.prometheus, args.minutes, [one["name"] for one in dashboard["templating"]["list"]])
        picture = args.out / f"{path.stem}.png"
        draw(dashboard, data, picture, dict(note.split("=", 1) for note in args.note).get(path.stem, ""))
        print(f"drew {picture.name}: {picture.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
