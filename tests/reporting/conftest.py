"""Run folders made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def make_run(
    folder: Path,
    words: list[str],
    figures: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    method: dict[str, Any] | None = None,
    status: str = "done",
    start: str = "2026-11-20T10:00:00+00:00",
    lines: list[dict[str, Any]] | None = None,
    **record: Any,
) -> Path:
    """What a run with these overrides leaves. figures: result.json; lines: metrics.jsonl; record: more of run.json."""
    folder.mkdir(parents=True)
    content = {"status": status, "overrides": words, "start": start, "error": None, "tasks": {}, **record}
    (folder / "run.json").write_text(json.dumps(content))
    OmegaConf.save({"seed": seed, "method": method or {"name": "moco"}}, folder / "config.yaml")
    if figures is not None:
        (folder / "result.json").write_text(json.dumps(figures))
    if lines is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def linear(top1: float) -> dict[str, Any]:
    return {"linear": {"top1": top1}}
