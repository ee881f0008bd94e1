"""From samples to a report: medians, ratios to candidates of the same run, spread, and which bars hold. JSON and Markdown."""

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmark.results import Results
from benchmark.rows import CURVES, ROWS, Bar, Curve, Row

WORSE_THAN_LINEAR = 1.15
"""Exponent of growth above which a curve is called worse than linear."""


def describe(results: Results, command: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """The whole report as JSON values."""
    return {
        "command": command,
        "host": {"cores": os.cpu_count(), "kernel": platform.release(), "processor": _processor(), "python": platform.python_version()},
        "settings": settings,
        "rows": {row.name: _row(row, results) for row in ROWS if results.samples.get(row.name)},
        "curves": {curve.name: _curve(curve, results) for curve in CURVES if results.points.get(curve.name)},
        "missing": dict(results.missing),
        "notes": list(results.notes),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _summary(values: list[float]) -> dict[str, Any]:
    median = statistics.median(values)
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [median] * 3
    return {
        "median": median,
        "min": min(values),
        "max": max(values),
        "spread": (quarters[2] - quarters[0]) / median if median else 0.0,
        "samples": values,
    }


def _row(row: Row, results: Results) -> dict[str, Any]:
    found = results.samples[row.name]
    bars = [
        judged
        for candidate in found
        if candidate.partition("-")[0] == "modelfs"
        for bar in row.bars
        if (judged := _judge(row, bar, candidate, results))
    ]
    return {
        "title": row.title,
        "unit": row.unit,
        "more_is_better": row.more_is_better,
        "candidates": {name: _summary(values) for name, values in found.items()},
        "bars": bars,
    }


def _judge(row: Row, bar: Bar, candidate: str, results: Results) -> dict[str, Any] | None:
    """One bar: the ratio of medians, the smallest and largest ratio of one round, and what it is held against."""
    own = results.samples[row.name][candidate]
    base = results.samples.get(bar.row or row.name, {}).get(bar.reference, []) if bar.reference else [1.0] * len(own)
    if not base:
        return None
    rounds = [mine / theirs for mine, theirs in zip(own, base, strict=False)]
    ratio = statistics.median(own) / statistics.median(base)
    more = bar.per_worker * (_workers(candidate) - 1)
    limit, aim = (None if value is None else value + more for value in (bar.bar, bar.aim))

    def reached(value: float | None) -> bool | None:
        return None if value is None else (ratio >= value if row.more_is_better else ratio <= value)

    return {
        "candidate": candidate,
        "reference": bar.reference + (f" ({bar.row})" if bar.row else ""),
        "ratio": ratio,
        "ratio_min": min(rounds),
        "ratio_max": max(rounds),
        "bar": limit,
        "holds": reached(limit),
        "aim": aim,
        "reaches_aim": reached(aim),
    }


def _workers(candidate: str) -> int:
    return int(candidate.partition("-")[2] or os.cpu_count() or 1)


def _curve(curve: Curve, results: Results) -> dict[str, Any]:
    series: dict[str, Any] = {}
    for candidate, points in results.points[curve.name].items():
        known = {x: _summary(values) for x, values in sorted(points.items())}
        series[candidate] = {
            "points": [{"x": x, **summary} for x, summary in known.items()],
            "growth": _growth(curve, {x: summary["median"] for x, summary in known.items()}),
        }
    linear = all(each["growth"] is None or each["growth"] <= WORSE_THAN_LINEAR for each in series.values())
    return {"title": curve.title, "unit": curve.unit, "along": curve.along, "series": series, "linear_or_better": linear}


def _growth(curve: Curve, medians: dict[float, float]) -> float | None:
    """Exponent of growth, the slope over all points in logarithms: 1 is linear, 0 constant; None where nothing is said to grow."""
    if curve.cost is None or len(medians) < 2:
        return None
    logarithms = [(math.log(x), math.log(curve.cost(x, value))) for x, value in medians.items()]
    return statistics.linear_regression(*zip(*logarithms, strict=True)).slope


def as_markdown(report: dict[str, Any]) -> str:
    """Tables for people."""
    host, settings = report["host"], report["settings"]
    ahead = f", read-ahead of the mount {settings['read_ahead_kb']} KiB" if settings["read_ahead_kb"] else ""
    lines = [
        "# Benchmark of modelfs",
        "",
        f"`{' '.join(report['command'])}`: {host['cores']} cores ({host['processor']}), Linux {host['kernel']},",
        f"{settings['rounds']} rounds, files of {settings['size_mib']} MiB{ahead}.",
        "Ratios are of medians; in brackets the smallest and largest of one round.",
    ]
    if report["rows"]:
        lines += ["", *_row_tables(report["rows"])]
    for curve in report["curves"].values():
        lines += ["", f"## {curve['title']}", "", *_curve_table(curve)]
    if report["missing"]:
        lines += ["", "## Not measured", "", *(f"- {name}: {reason}" for name, reason in report["missing"].items())]
    if report["notes"]:
        lines += ["", "## Notes", "", *(f"- {note}" for note in report["notes"])]
    return "\n".join(lines) + "\n"


def _row_tables(rows: dict[str, Any]) -> list[str]:
    """The bars, then every candidate's median."""
    head = ["row", "candidate", "median", "against", "ratio", "bar", "holds", "aim", "reached"]
    names = list(dict.fromkeys(name for row in rows.values() for name in row["candidates"]))
    return [
        *_table(head, (_bar_cells(row, bar) for row in rows.values() for bar in row["bars"])),
        *("", "## All candidates", "", "Median, and the middle half of the samples relative to it.", ""),
        *_table(["row", "unit", *names], ([row["title"], row["unit"], *(_cell(row, name) for name in names)] for row in rows.values())),
    ]


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _bar_cells(row: dict[str, Any], bar: dict[str, Any]) -> list[str]:
    sign = "≥" if row["more_is_better"] else "≤"
    unit = "×" if bar["reference"] else row["unit"]

    def limit(value: float | None) -> str:
        return "" if value is None else f"{sign} {number(value)} {unit}"

    def verdict(reached: bool | None) -> str:
        return {True: "yes", False: "**no**", None: ""}[reached]

    median = f"{number(row['candidates'][bar['candidate']]['median'])} {row['unit']}"
    ratio = f"{number(bar['ratio'])} ({number(bar['ratio_min'])} to {number(bar['ratio_max'])})" if bar["reference"] else ""
    return [
        row["title"], bar["candidate"], median, bar["reference"], ratio,
        limit(bar["bar"]), verdict(bar["holds"]), limit(bar["aim"]), verdict(bar["reaches_aim"]),
    ]  # fmt: skip


def _cell(row: dict[str, Any], name: str) -> str:
    found = row["candidates"].get(name)
    return f"{number(found['median'])} ± {100 * found['spread'] / 2:.0f} %" if found else ""


def _curve_table(curve: dict[str, Any]) -> list[str]:
    places = sorted({point["x"] for each in curve["series"].values() for point in each["points"]})

    def cells(name: str, each: dict[str, Any]) -> list[str]:
        medians = {point["x"]: point["median"] for point in each["points"]}
        growth = "" if each["growth"] is None else f"{each['growth']:.2f}"
        return [name, *(number(medians[x]) if x in medians else "" for x in places), growth]

    head = [f"{curve['unit']} by {curve['along']}", *(f"{x:g}" for x in places), "growth (1: linear)"]
    return _table(head, (cells(name, each) for name, each in curve["series"].items()))


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write(report: dict[str, Any], directory: Path) -> None:
    """`report.json` and `report.md`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (directory / "report.md").write_text(as_markdown(report))
