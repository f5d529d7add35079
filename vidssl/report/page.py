"""report.html: one page without scripts that needs no other file. page.html is its template."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup, escape

from vidssl.report import conditions, curves, dots, gallery, parameter
from vidssl.report.plan import About
from vidssl.report.runs import Setting, Trial, count_states, is_single
from vidssl.report.states import STATES, in_order, state
from vidssl.report.tables import Table, summary


def page(folder: Path, settings: list[Setting], tables: Sequence[Table], legend: list[str], about: About) -> str:
    """How many runs are done, tables, plots, pictures that the runs left.

    A single run is looked at: its pictures come first, and its curves are drawn unless they are among them.
    """
    run = settings[0].runs[0] if is_single(settings) and not about.note and about.published is None else None
    commands = [_command(run) for setting in settings for run in setting.runs]
    if run is not None:
        settings = [Setting("", [run])]  # its label would say nothing
        sections = [None if gallery.has_curves(run) else curves.section(settings)]
    else:
        along = parameter.section(settings, about.baseline, about.published)
        sections = [along, curves.section(settings), dots.section(settings)]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"inline": _inline, "badge": _badge, "cell": _cell}
    return environment.from_string(files("vidssl.report").joinpath("page.html").read_text()).render(
        title=folder.resolve().name,
        written=f"Written {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}.",
        run=run,
        settings=settings,
        about=about,
        summary=summary(settings),
        states={name: (count, state(name)) for name, count in in_order(count_states(settings)).items()},
        tables=tables,
        legend=legend,
        bias=conditions.section(settings),
        sections=sections,
        groups=[] if run is None else gallery.of_run(run),
        thumbnails=[] if run else gallery.of_settings(settings),
        inputs=gallery.INPUTS,
        commands=commands,
    )


def _command(run: Trial) -> str:
    name = run.folder.name if run.folder else "-"
    return f"{name}, {run.status}: python launch.py {shlex.join(run.overrides)}"


def _inline(svg: str) -> Markup:
    """Within HTML a drawing needs no namespaces."""
    return Markup(re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg))


def _badge(text: str, status: str) -> Markup:
    return Markup('<span class="badge" style="background:{}">{}</span>').format(state(status).color, text)


def _cell(text: str) -> Markup:
    """A table's cell: `failed` and the like as badges, also after a seed as in `0 (failed)`; numbers are not broken."""
    seed, status = re.findall(r"^(?:(\d+) \()?(.*?)\)?\Z", text, re.DOTALL)[0]
    if status not in STATES:
        whole = r"[-\d.]+ \+- [\d.]+|\(\d+ of \d+\)"
        return Markup(re.sub(whole, r'<span class="whole">\g<0></span>', str(escape(text))))
    badge = _badge(status, status)
    return Markup('<span class="whole">{} {}</span>').format(seed, badge) if seed else badge
