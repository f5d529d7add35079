"""Comparisons, where and with what they were measured: a JSON file for programs, a table for people."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.compare.timing import Row
from vidssl.bench.record import surroundings
from vidssl.engine.records import read_json, write_json

SCHEMA = 1  # a new number where a key changes its meaning or goes
WIDE = 0.1  # spread above which a row should be measured again
DISTRIBUTIONS = ("torchcodec", "decord", "opencv-python-headless", "opencv-python")


def write(file: Path, rows: Sequence[Row], options: dict[str, Any], left_out: Mapping[str, str]) -> None:
    """left_out: competitors that were not measured -> why."""
    content = {"schema": SCHEMA, **surroundings(), "options": options, "left_out": dict(left_out)}
    content["versions"] |= libraries()
    content["rows"] = [row._asdict() | {"figures": dict(row.figures), "met": row.is_met} for row in rows]
    write_json(file, content)


def read(file: Path) -> list[Row]:
    """Raises ValueError for a file of another schema."""
    content = read_json(file)
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{file}: schema {content.get('schema')}, this version reads {SCHEMA}; measure again")
    return [Row(**{key: value for key, value in row.items() if key in Row._fields}) for row in content["rows"]]


def libraries() -> dict[str, str]:
    """Versions of the competitors that are installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(rows: Sequence[Row], width: int = 180) -> str:
    """Ratios with their quartiles, what they should be at least, whether they are."""
    grid = Table(box=None, pad_edge=False)
    grid.add_column("what", no_wrap=True)
    grid.add_column("baseline", no_wrap=True)
    for name in ("times", "quartiles", "at least"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("", overflow="fold")
    before = None
    for row in rows:
        least = "" if row.least is None else f"{row.least:g}"
        met = "" if row.least is None else "met" if row.is_met else "NOT MET"
        remarks = [met, row.note, f"spread {row.spread:.0%}" if row.spread > WIDE else ""]
        what = f"{row.part}: {row.what}" if row.what != before else ""
        quartiles = f"{row.low:.2f} - {row.high:.2f}"
        grid.add_row(what, row.baseline, f"{row.ratio:.2f}", quartiles, least, "; ".join(filter(None, remarks)))
        before = row.what
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
