"""Run folders made by hand; what is in a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from vidssl.report import canvas


def make_run(
    folder: Path,
    words: list[str],
    metrics: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    method: dict[str, Any] | None = None,
    status: str = "done",
    start: str = "2026-11-20T10:00:00+00:00",
    lines: list[dict[str, Any]] | None = None,
    **record: Any,
) -> Path:
    """What a run with these overrides leaves. metrics: result.json; lines: metrics.jsonl; record: more of run.json."""
    folder.mkdir(parents=True)
    content = {"status": status, "overrides": words, "start": start, "error": None, "tasks": {}, **record}
    (folder / "run.json").write_text(json.dumps(content))
    OmegaConf.save({"seed": seed, "method": method or {"name": "moco"}}, folder / "config.yaml")
    if metrics is not None:
        (folder / "result.json").write_text(json.dumps(metrics))
    if lines is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def linear(top1: float) -> dict[str, Any]:
    return {"linear": {"top1": top1}}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures behind pictures and SVG."""
    made: list[Figure] = []
    figure = canvas.figure

    def noted(*size: float, **look: Any) -> Figure:
        made.append(figure(*size, **look))
        return made[-1]

    monkeypatch.setattr(canvas, "figure", noted)
    return made


def marks(plot: Axes, kind: str, color: str | None = None) -> list[tuple[float, float]]:
    """x, y of the marks of a kind."""
    look = canvas.MARKS[kind]
    lines = [line for line in plot.lines if line.get_marker() == look["marker"]]
    lines = [line for line in lines if line.get_markersize() == look["markersize"]]
    return [tuple(line.get_xydata()[0]) for line in lines if color in (None, line.get_color())]


def tooltips(svg: str) -> list[str]:
    """The title of an SVG, then the tooltips of its marks."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("title")]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]
