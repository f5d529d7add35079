"""Settings that differ in one number of the method: every metric in percent against that number."""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from vidssl.engine.records import flat
from vidssl.report import canvas
from vidssl.report.canvas import Entry, Section
from vidssl.report.runs import Setting
from vidssl.report.tables import COLUMNS, percent_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BESIDE = "#000000"  # color of settings without the number
Published = dict[str, Any]  # source, columns, rows
Options = list[tuple[Setting, dict[str, Any]]]  # of the configuration's section method: method.beta -> 0.5


class Parameter(NamedTuple):
    key: str  # such as method.beta
    second: str  # another key, such as method.apply_to; "": none
    lines: dict[str, list[tuple[float, Setting]]]  # by the value of the second key, such as "apply_to both"
    beside: list[Setting]  # without the number


def find_parameter(settings: list[Setting], baseline: str | None) -> Parameter | None:
    """The only key of the method whose numbers distinguish the settings, alone or times one key that has no numbers.

    Settings without such a number are drawn beside it, as is the baseline where it differs in more.
    """
    options = [(setting, flat(setting.config["method"], "method")) for setting in settings if setting.config]
    every = _only_fit(options)
    others = _only_fit([(setting, its) for setting, its in options if setting.label != baseline])
    found = every if every and every.second == (others.second if others else "") else others
    if found is None:
        return None
    on_line = [id(setting) for line in found.lines.values() for _, setting in line]
    return found._replace(beside=[setting for setting, _ in options if id(setting) not in on_line])


def _only_fit(options: Options) -> Parameter | None:
    keys = dict.fromkeys(key for _, its in options for key in its)
    fitting = [fit for key in keys if (fit := _fit(key, options)) is not None]
    return fitting[0] if len(fitting) == 1 else None


def _fit(key: str, options: Options) -> Parameter | None:
    having = [(setting, its) for setting, its in options if _is_number(its.get(key))]
    names = {name for _, its in having for name in its}
    differing = {name for name in names if len({repr(its.get(name)) for _, its in having}) > 1}
    second = next(iter(differing - {key}), "")
    if not differing >= {key} or len(differing) > 2 or any(_is_number(its.get(second)) for _, its in having):
        return None
    lines: dict[str, list[tuple[float, Setting]]] = {}
    for setting, its in having:
        line = f"{second.rpartition('.')[2]} {its.get(second)}" if second else ""
        lines.setdefault(line, []).append((its[key], setting))
    if any(len({number for number, _ in line}) < len(line) for line in lines.values()):
        return None  # they differ outside the method, too
    if all(len(line) == 1 for line in lines.values()):
        return None  # both keys change at once
    return Parameter(key, second, {name: sorted(line, key=lambda pair: pair[0]) for name, line in lines.items()}, [])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------------
# Plot


def section(settings: list[Setting], baseline: str | None, published: Published | None) -> Section | None:
    """A plot for every metric in percent."""
    found = find_parameter(settings, baseline)
    if found is None:
        return None
    names = percent_names(settings)
    legend = canvas.line_entries(name or found.key for name in found.lines)
    legend += [Entry(setting.label, "dashed", BESIDE) for setting in found.beside]
    legend += [Entry("mean", canvas.SYMBOLS["mean"]), Entry("one seed", canvas.SYMBOLS["mean"], "#55555573")]
    if published is not None and any(map(_is_top1, names)):
        columns = zip(canvas.PUBLISHED, published["columns"], strict=False)
        legend += [Entry(f"published, {column}", canvas.SYMBOLS[kind]) for kind, column in columns]
    plots = [(COLUMNS[name].title, draw(found, name, published)) for name in names]
    return Section(f"Along {found.key}", plots, legend)


def draw(parameter: Parameter, name: str, published: Published | None) -> str:
    """SVG: a dot for each seed, a line through the means; hollow marks for published metrics."""
    published = published if _is_top1(name) else None
    sheet, plot = canvas.chart(parameter.key, f"{COLUMNS[name].title}, %")
    on_line = [pair for line in parameter.lines.values() for pair in line]
    positions = spread_out(sorted({number for number, _ in on_line}))
    first, last = min(positions.values()), max(positions.values())
    plot.set_xlim(first - 0.08 * (last - first), last + 0.08 * (last - first))
    plot.set_xticks(list(positions.values()), [f"{number:.10g}" for number in positions])
    for setting in parameter.beside:
        _draw_beside(plot, setting, name, published)
    for number, line in enumerate(parameter.lines.values()):
        aside = (number - (len(parameter.lines) - 1) / 2) * 0.028 * (last - first)  # not one line on another
        _draw_line(
            plot, [(positions[x] + aside, setting) for x, setting in line], name, published, canvas.line_style(number)
        )
    return canvas.svg(sheet, f"{COLUMNS[name].title} against {parameter.key}")


def _draw_line(
    plot: Axes, line: list[tuple[float, Setting]], name: str, published: Published | None, look: tuple[str, str]
) -> None:
    color, dash = look
    means = [(x, statistics.fmean(values.values())) for x, setting in line if (values := setting.by_seed(name))]
    plot.plot([x for x, _ in means], [y for _, y in means], color=color, linestyle=dash, linewidth=1.65)
    for x, setting in line:
        for kind, column, value in published_marks(setting, published):
            canvas.mark(plot, (x, value), kind, color, f"{setting.label}, published, {column}: {value:g}")
        for seed, value in setting.by_seed(name).items():
            canvas.mark(plot, (x, value), "seed", color, f"{setting.label}, seed {seed}: {value:.1f}")
    for point in means:
        canvas.mark(plot, point, "mean", color, f"mean {point[1]:.1f}")


def _draw_beside(plot: Axes, setting: Setting, name: str, published: Published | None) -> None:
    """Lines across the whole plot: the setting has no position on its axis."""
    values = setting.by_seed(name).values()
    if values:
        plot.axhline(statistics.fmean(values), color=BESIDE, linestyle="dashed", linewidth=1.2)
    for kind, column, value in published_marks(setting, published):
        plot.axhline(value, color=BESIDE, linestyle="dotted", linewidth=0.9)
        point = (plot.get_xlim()[0], value)
        canvas.mark(plot, point, kind, BESIDE, f"{setting.label}, published, {column}: {value:g}")


def _is_top1(name: str) -> bool:
    """Whether published metrics are comparable; not, say, to a preference."""
    return name.endswith(".top1")


def published_marks(setting: Setting, published: Published | None) -> list[tuple[str, str, float]]:
    """kind of mark, column, value"""
    if published is None or setting.label not in published["rows"]:
        return []
    columns = zip(canvas.PUBLISHED, published["columns"], published["rows"][setting.label], strict=False)
    return [(kind, column, value) for kind, column, value in columns if _is_number(value)]


def spread_out(numbers: list[float]) -> dict[float, float]:
    """Position of each number on the axis: the number itself, or equal distances where their names would overlap."""
    gaps = [after - before for before, after in pairwise(numbers)]
    return dict(zip(numbers, range(len(numbers)) if max(gaps) > 4 * min(gaps) else numbers, strict=True))
