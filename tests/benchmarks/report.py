"""What was measured, and is it what it should be? Rows of a table; figures of one run stand beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        work: What was done.
        ours: What came of it here, each measurement: seconds, or something a second.
        against: What the other figures are of.
        theirs: The other figures, measured in turns with ours.
        unit: `ms` (the figures are seconds) or what is counted, as in `tokens/s`.
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


def table(rows: Sequence[Row]) -> str:
    """Markdown. Figures are medians, with the tenth and the ninetieth percentile."""
    lines = ["| work | here | against | there | compared | to reach | |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row.work} | {_figures(row.ours, row.unit)} | {row.against} | {_figures(row.theirs, row.unit)}"
        f" | {row.value} | {row.bar} | {'reached' if row.is_reached else '**missed**'} |"
        for row in rows
    ]
    return "\n".join(lines)


def _figures(samples: Sequence[float], unit: str) -> str:
    scale = 1000 if unit == "ms" else 1
    ordered = sorted(sample * scale for sample in samples)
    last = len(ordered) - 1
    low, high = ordered[round(last * 0.1)], ordered[round(last * 0.9)]
    return f"{statistics.median(ordered):.1f} {unit} ({low:.1f} to {high:.1f})"
