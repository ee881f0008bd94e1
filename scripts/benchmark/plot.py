"""The report as pictures: `bars.svg`, how modelfs stands against each reference, and `curves.svg`, how cost grows."""

from pathlib import Path
from typing import Any

COLUMNS = 3


def draw(report: dict[str, Any], directory: Path) -> str | None:
    """Draw what the report has. Returns why it cannot be drawn; None if it was."""
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is missing: run scripts/setup"
    matplotlib.use("svg")
    _draw_bars(report, directory / "bars.svg")
    _draw_curves(report, directory / "curves.svg")
    return None


def _draw_bars(report: dict[str, Any], path: Path) -> None:
    """Each ratio turned so that more is better, with its bar and its aim."""
    from matplotlib import pyplot

    lines = []
    for row in report["rows"].values():
        for bar in row["bars"]:
            if bar["candidate"] == "modelfs":
                lines.append((row, bar))
    if not lines:
        return
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.32 * len(lines)), layout="constrained")
    for place, (row, bar) in enumerate(reversed(lines)):
        scale = 1.0 if bar["reference"] else (bar["bar"] or 1.0)  # a value of its own: relative to its bar

        def turned(value: float, up: bool = row["more_is_better"], scale: float = scale) -> float:
            return value / scale if up else scale / value

        middle = turned(bar["ratio"])
        ends = sorted((turned(bar["ratio_min"]), turned(bar["ratio_max"])))
        colour = "tab:gray" if bar["holds"] is None else "tab:green" if bar["holds"] else "tab:red"
        axes.barh(place, middle, color=colour, alpha=0.6)
        axes.plot(ends, [place, place], color="black", linewidth=1)
        for value, mark in ((bar["bar"], "|"), (bar["aim"], ":")):
            if value is not None:
                axes.vlines(turned(value), place - 0.45, place + 0.45, colors="black", linestyles="solid" if mark == "|" else "dotted")
    axes.set_yticks(range(len(lines)), [f"{row['title']}  /  {bar['reference'] or 'bar'}" for row, bar in reversed(lines)], fontsize=8)
    axes.margins(y=0.01)
    axes.set_xlabel("modelfs / reference, turned so that more is better")
    figure.suptitle("solid line: bar; dotted: aim; thin line: range of the rounds", fontsize=9)
    figure.savefig(path)
    pyplot.close(figure)


def _draw_curves(report: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    curves = list(report["curves"].values())
    if not curves:
        return
    rows = -(-len(curves) // COLUMNS)
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=(5 * COLUMNS, 3.5 * rows), layout="constrained", squeeze=False)
    for axes, curve in zip(grid.flat, curves, strict=False):
        for name, each in curve["series"].items():
            points = each["points"]
            axes.plot([point["x"] for point in points], [point["median"] for point in points], marker="o", label=name)
            axes.fill_between(
                [point["x"] for point in points], [point["min"] for point in points], [point["max"] for point in points], alpha=0.2
            )
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(curve["title"], fontsize=10)
        axes.set_xlabel(curve["along"], fontsize=8)
        axes.set_ylabel(curve["unit"], fontsize=8)
        axes.legend(fontsize=8)
    for axes in list(grid.flat)[len(curves) :]:
        axes.set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)
