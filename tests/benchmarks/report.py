"""What was measured, and is it what it should be? Rows of a table; figures of one run stand beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison, or a figure alone: then there is nothing that it is against, and no bar.

    Attributes:
        work: What was done.
        ours: What came of it here, each measurement: seconds, or something a second.
        against: What the other figures are of.
        theirs: The other figures, measured in turns with ours.
        unit: `ms` or `µs` (the figures are seconds), or what is counted, as in `tokens/s`.
        bar: What is to be reached, as it is written in the table.
        value: What is held against the bar, as it is written in the table.
        is_reached: Whether it is.
    """

    work: str
    ours: Sequence[float]
    against: str
    theirs: Sequence[float]
    unit: str
    bar: str
    value: str
    is_reached: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """What could not be measured here."""

    work: str
    reason: str


def figure(work: str, ours: Sequence[float], *, unit: str) -> Row:
    """A figure that is compared to nothing; it shows where a change of another one comes from."""
    return Row(work=work, ours=ours, against="", theirs=(), unit=unit, bar="", value="", is_reached=True)


def at_most(work: str, ours: Sequence[float], most: float, *, unit: str) -> Row:
    """Figures whose median is at most `most`."""
    median = statistics.median(ours)
    return Row(
        work=work,
        ours=ours,
        against="",
        theirs=(),
        unit=unit,
        bar=f"≤ {most:g} {unit}",
        value=f"{median:.1f} {unit}",
        is_reached=median <= most,
    )


def at_most_ratio(
    work: str, ours: Sequence[float], against: str, theirs: Sequence[float], *, ratio: float, unit: str = "ms"
) -> Row:
    """Times whose median is at most `ratio` times the others'."""
    reached = statistics.median(ours) / statistics.median(theirs)
    return Row(
        work=work,
        ours=ours,
        against=against,
        theirs=theirs,
        unit=unit,
        bar=f"≤ {ratio:g}",
        value=f"{reached:.2f}",
        is_reached=reached <= ratio,
    )


def at_most_more(work: str, ours: Sequence[float], against: str, theirs: Sequence[float], *, more_s: float) -> Row:
    """Times whose median may be longer than the others' by `more_s`."""
    difference_s = statistics.median(ours) - statistics.median(theirs)
    return Row(
        work=work,
        ours=ours,
        against=against,
        theirs=theirs,
        unit="ms",
        bar=f"≤ {more_s * 1000:.0f} ms more",
        value=f"{difference_s * 1000:+.1f} ms",
        is_reached=difference_s <= more_s,
    )


def at_least_ratio(
    work: str, ours: Sequence[float], against: str, theirs: Sequence[float], *, ratio: float, unit: str
) -> Row:
    """Rates whose median is at least `ratio` times the others'."""
    reached = statistics.median(ours) / statistics.median(theirs)
    return Row(
        work=work,
        ours=ours,
        against=against,
        theirs=theirs,
        unit=unit,
        bar=f"≥ {ratio:g}",
        value=f"{reached:.2f}",
        is_reached=reached >= ratio,
    )


def table(rows: Sequence[Row | Skipped]) -> str:
    """Markdown. Figures are medians, with the tenth and the ninetieth percentile."""
    lines = ["| work | here | against | there | compared | to reach | |", "|---|---|---|---|---|---|---|"]
    lines += map(line, rows)
    return "\n".join(lines)


def line(row: Row | Skipped) -> str:
    """One row of the table."""
    if isinstance(row, Skipped):
        return f"| {row.work} | not measured: {row.reason} | | | | | |"
    verdict = "" if not row.bar else "reached" if row.is_reached else "**missed**"
    return (
        f"| {row.work} | {_figures(row.ours, row.unit)} | {row.against} | {_figures(row.theirs, row.unit)}"
        f" | {row.value} | {row.bar} | {verdict} |"
    )


def _figures(samples: Sequence[float], unit: str) -> str:
    if not samples:
        return ""
    scale = {"ms": 1e3, "µs": 1e6}.get(unit, 1)
    ordered = sorted(sample * scale for sample in samples)
    last = len(ordered) - 1
    low, high = ordered[round(last * 0.1)], ordered[round(last * 0.9)]
    median = statistics.median(ordered)
    digits = 0 if median >= 1000 else 1 if median >= 10 else 2
    between = f" ({low:.{digits}f} to {high:.{digits}f})" if last else ""
    return f"{median:.{digits}f} {unit}{between}"
