"""What a part of the benchmark has to say: one row a figure, beside its target."""

import dataclasses
import math
import os


@dataclasses.dataclass
class Row:
    part: str
    what: str
    value: str
    target: str = ""
    # None where there is no target.
    met: bool | None = None


def at_most(part: str, what: str, value: float, bound: float, unit: str, digits: int = 0) -> Row:
    return Row(part, what, f"{value:.{digits}f} {unit}".strip(), f"<= {bound:g} {unit}".strip(), value <= bound)


def at_least(part: str, what: str, value: float, bound: float, unit: str, digits: int = 0) -> Row:
    return Row(part, what, f"{value:.{digits}f} {unit}".strip(), f">= {bound:g} {unit}".strip(), value >= bound)


def exactly(part: str, what: str, value: int, wanted: int) -> Row:
    return Row(part, what, str(value), str(wanted), value == wanted)


def percentile(samples: list[float], share: float) -> float:
    """The nearest rank: an observed value, never one between two."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def table(rows: list[Row]) -> str:
    wide = [max(len(getattr(row, name)) for row in rows) for name in ("part", "what", "value", "target")]
    lines = [f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} in the last minute"]
    for row in rows:
        mark = {True: "ok", False: "MISSED", None: ""}[row.met]
        cells = (row.part, row.what, row.value, row.target)
        lines.append("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, wide)) + f"  {mark}".rstrip())
    return "\n".join(line.rstrip() for line in lines)
