"""report.html: a page of its own, without a script and without another file."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vidssl.reporting import conditions, curves, dots, gallery, parameter
from vidssl.reporting.axes import MARKS, mark, stroke, tag
from vidssl.reporting.parameter import Parameter, find_parameter, share_names
from vidssl.reporting.plan import About
from vidssl.reporting.runs import Setting, Trial, count_states, is_single
from vidssl.reporting.states import STATES, state
from vidssl.reporting.tables import COLUMNS, Sheet, summary

STYLE = """
:root { color-scheme: light }
html { background: #fff }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em; color: #222 }
h1, h2 { line-height: 1.25; overflow-wrap: anywhere }
h2 { margin: 1.6em 0 .6em; font-size: 1.25em }
table { border-collapse: collapse; font-size: 14px; margin-bottom: 1.5em }
td, th { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
.wide { overflow-x: auto }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1em 2em }
.pictures { display: flex; flex-wrap: wrap; gap: 1em 1.5em }
figure { margin: 0; min-width: 0 }
figcaption { font-size: 14px; color: #555; margin: .2em 0 }
svg { display: block; max-width: 100%; height: auto; font-family: system-ui, sans-serif }
img, video { display: block; max-width: 100%; height: auto }
video { min-width: min(100%, 480px) }
.large { margin: 0 0 1.4em }
.small { font-size: 13px; color: #555; overflow-wrap: anywhere }
.legend { display: flex; flex-wrap: wrap; gap: .3em 1.4em; padding: 0; margin: .5em 0 1em; list-style: none }
.legend li { font-size: 14px }
.legend li { display: flex; align-items: center; gap: .5em }
.badge { color: #fff; border-radius: .7em; padding: .05em .6em; font-size: 12.5px; white-space: nowrap }
.whole { white-space: nowrap }
@media (max-width: 700px) { table { font-size: 13px } td, th { padding: .3em .4em } }
"""


def page(folder: Path, settings: list[Setting], sheets: Sequence[Sheet], legend: list[str], about: About) -> str:
    """How many runs are done, tables, curves, a dot for every run, the pictures that the runs left."""
    title = html.escape(folder.resolve().name)
    head = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>vidssl: {title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
    ]
    read = ['<p class="small">' + "<br>".join(map(html.escape, legend)) + "</p>"]
    is_alone = is_single(settings) and not about.note and about.published is None
    body = _of_one(settings[0].runs[0], sheets, read) if is_alone else _of_many(settings, sheets, read, about)
    commands = [
        "<h2>Commands</h2>",
        '<p class="small">' + "<br>".join(_command(run) for setting in settings for run in setting.runs) + "</p>",
    ]
    parts = [*head, *body, *commands, "</body></html>"]
    return "\n".join(part for part in parts if part) + "\n"


def _of_one(run: Trial, sheets: Sequence[Sheet], legend: list[str]) -> list[str]:
    """A run alone is looked at: pictures first. Its curves are drawn here unless they are among them."""
    first, *others = sheets
    drawn = gallery.large(run.folder)
    drawn += [] if gallery.has(run.folder, "curves") else _curves([Setting("", [run])])
    told = [_what(run), _how_far([Setting("", [run])]) if run.status != "done" else f"<p>{_written()}</p>"]
    return [*told, _table(first), *_changed([Setting("", [run])]), *drawn, *map(_table, others), *legend]


def _what(run: Trial) -> str:
    parts = [f"{key} {run.config[key]['name']}" for key in ("method", "backbone", "dataset") if key in run.config]
    return tag("p", html.escape(", ".join([*parts, f"seed {run.seed}"])))


def _of_many(settings: list[Setting], sheets: Sequence[Sheet], legend: list[str], about: About) -> list[str]:
    found = find_parameter(settings, about.baseline)
    return [
        _how_far(settings),
        tag("p", html.escape(about.note)) if about.note else "",
        *map(_table, sheets),
        *legend,
        *_changed(settings),
        *(_parameter(found, settings, about.published) if found else ()),
        *_curves(settings),
        *_dots(settings),
        "<h2>What the networks see</h2>",
        _pictures(settings),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# States


def _how_far(settings: list[Setting]) -> str:
    """Counts, the time, and what the badges mean."""
    counts = count_states(settings)
    told = f"<p><b>{html.escape(summary(settings))}.</b> {_written()}</p>"
    there = [name for name in (*STATES, *sorted(counts.keys() - STATES.keys())) if counts[name]]
    meanings = ((_badge(name, f"{counts[name]} {name}"), state(name).meaning) for name in there)
    return told + _legend(meanings)


def _written() -> str:
    return f"Written {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}."


def _badge(status: str, content: str) -> str:
    return tag("span", html.escape(content), class_="badge", style=f"background:{state(status).color}")


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    """entries: a sample, as markup, and what it stands for."""
    return '<ul class="legend">' + "".join(f"<li>{sample} {html.escape(of)}</li>" for sample, of in entries) + "</ul>"


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _table(sheet: Sheet) -> str:
    def cells(kind: str, row: list[str]) -> str:
        return "<tr>" + "".join(tag(kind, _cell(cell)) for cell in row) + "</tr>"

    title = tag("h2", html.escape(sheet.title[:1].upper() + sheet.title[1:])) if sheet.title else ""
    rows = (cells("th" if row[1] == "mean" else "td", row) for row in sheet.rows)
    return f'{title}<div class="wide"><table>{cells("th", sheet.head)}{"".join(rows)}</table></div>'


def _cell(content: str) -> str:
    """`failed` and the like as badges, also after a seed: 0 (failed)."""
    seed, status = re.fullmatch(r"(?:(\d+) \()?(.*?)\)?", content, re.S).groups()
    if status not in STATES:
        return re.sub(r"[-\d.]+ \+- [\d.]+|\(\d+ of \d+\)", r'<span class="whole">\g<0></span>', html.escape(content))
    return f'<span class="whole">{seed} {_badge(status, status)}</span>' if seed else _badge(status, status)


# ---------------------------------------------------------------------------------------------------------------------
# Plots


def _sample(color: str, dash: str = "") -> str:
    line = tag("line", x1=0, y1=6, x2=28, y2=6, stroke=color, stroke_width=3, stroke_dasharray=dash or None)
    return tag("svg", line, width=28, height=12)


def _marked(kind: str, color: str = "#555") -> str:
    return tag("svg", mark((7, 7), kind, color), width=14, height=14)


def _parameter(found: Parameter, settings: list[Setting], published: dict[str, Any] | None) -> list[str]:
    """The number against every figure in percent."""
    names = share_names(settings)
    entries = [(_sample(*stroke(number)), name or found.key) for number, name in enumerate(found.lines)]
    entries += [(_sample(parameter.BESIDE, "7 4"), setting.label) for setting in found.beside]
    entries += [(_marked("mean"), "mean"), (_marked("seed"), "one seed")]
    if published is not None and any(map(parameter.is_top1, names)):
        columns = zip(MARKS, published["columns"], strict=False)
        entries += [(_marked(kind), f"published, {name}") for kind, name in columns]
    drawn = ((COLUMNS[name].title, parameter.draw(found, name, published)) for name in names)
    return [tag("h2", html.escape(f"Along {found.key}")), _legend(entries), _figures(drawn)]


def _curves(settings: list[Setting]) -> list[str]:
    plots = curves.plots(settings)
    if not plots:
        return []
    entries = [(_sample(*stroke(number)), setting.label) for number, setting in enumerate(settings)]
    told = "Thick: the mean over the seeds that have come so far. Thin: each seed."
    broken = any(run.status in curves.BROKEN for setting in settings for run in setting.runs)
    entries += [(_marked("cross"), "a run that stopped before its end")] if broken else []
    return ["<h2>Training</h2>", _legend(entries), tag("p", told, class_="small"), _figures(plots)]


def _dots(settings: list[Setting]) -> list[str]:
    names = share_names(settings)
    drawn = ((f"{COLUMNS[name].title}, %", dots.draw(settings, name, COLUMNS[name].title)) for name in names)
    return ["<h2>Every run</h2>", _figures(drawn)] if names else []


def _figures(drawn: Iterable[tuple[str, str]]) -> str:
    each = (f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>" for caption, svg in drawn)
    return f'<div class="plots">{"".join(each)}</div>'


def _changed(settings: list[Setting]) -> list[str]:
    """What task=bias measured, of as many settings as fit into one figure."""
    having = [(setting.label, found) for setting in settings if (found := conditions.measured(setting))]
    if not 0 < len(having) <= conditions.MOST:
        return []
    entries = [(_sample(*stroke(number)), label) for number, (label, _) in enumerate(having)] if len(having) > 1 else []
    return ["<h2>Background or motion?</h2>", _legend(entries), conditions.figure(having)]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and commands


def _pictures(settings: list[Setting]) -> str:
    """Of the first run of each setting that left some; those of one name side by side. Curves are drawn above."""
    found = []
    for setting in settings:
        left = (gallery.pictures(run.folder) for run in setting.runs if run.folder)
        found += [(file, setting.label) for file in next(filter(None, left), []) if "curves" not in file.stem]
    shown = [gallery.small(*each) for each in sorted(found, key=lambda each: gallery.place(each[0]))]
    return f'<div class="pictures">{"".join(shown)}</div>' if shown else "<p>These runs left no pictures.</p>"


def _command(run: Trial) -> str:
    name = run.folder.name if run.folder else "-"
    return html.escape(f"{name}, {run.status}: python launch.py {shlex.join(run.words)}")
