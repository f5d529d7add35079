"""Where settings differ in one number of the method: that number against every accuracy."""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import Any, NamedTuple

from vidssl.engine.records import flat
from vidssl.reporting.axes import MARKS, Chart, Scale, round_scale, stroke, written
from vidssl.reporting.runs import Setting
from vidssl.reporting.tables import COLUMNS, column_names

BESIDE = "#000000"  # color of settings without the number


class Parameter(NamedTuple):
    key: str  # such as method.beta
    word: str  # a second key, such as method.apply_to; "": none
    lines: dict[str, list[tuple[float, Setting]]]  # by its value, such as "apply_to both"
    beside: list[Setting]  # without the number


Leaves = list[tuple[Setting, dict[str, Any]]]  # of the section method: method.beta -> 0.5


def find_parameter(settings: list[Setting], baseline: str | None) -> Parameter | None:
    """The key of the method whose numbers set the settings apart, alone or times one key of words.

    Settings that have no such number stand beside it, and the baseline where it differs in more. Else there is none.
    """
    leaves = [(setting, flat(setting.config["method"], "method")) for setting in settings if setting.config]
    every = _only_fit(leaves)
    others = _only_fit([(setting, its) for setting, its in leaves if setting.label != baseline])
    found = every if every and every.word == (others.word if others else "") else others
    if found is None:
        return None
    on_it = [id(setting) for line in found.lines.values() for _, setting in line]
    return found._replace(beside=[setting for setting, _ in leaves if id(setting) not in on_it])


def _only_fit(leaves: Leaves) -> Parameter | None:
    keys = dict.fromkeys(key for _, its in leaves for key in its)
    fitting = [fit for key in keys if (fit := _fit(key, leaves)) is not None]
    return fitting[0] if len(fitting) == 1 else None


def _fit(key: str, leaves: Leaves) -> Parameter | None:
    having = [(setting, its) for setting, its in leaves if _is_number(its.get(key))]
    names = {name for _, its in having for name in its}
    differing = {name for name in names if len({repr(its.get(name)) for _, its in having}) > 1}
    word = next(iter(differing - {key}), "")
    if not differing >= {key} or len(differing) > 2 or any(_is_number(its.get(word)) for _, its in having):
        return None
    lines: dict[str, list[tuple[float, Setting]]] = {}
    for setting, its in having:
        line = f"{word.rpartition('.')[2]} {its.get(word)}" if word else ""
        lines.setdefault(line, []).append((its[key], setting))
    if any(len({number for number, _ in line}) < len(line) for line in lines.values()):
        return None  # they differ outside the method, too
    if all(len(line) == 1 for line in lines.values()):
        return None  # both keys change at once
    return Parameter(key, word, {name: sorted(line, key=lambda pair: pair[0]) for name, line in lines.items()}, [])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def share_names(settings: list[Setting]) -> list[str]:
    return [name for name in column_names(settings) if COLUMNS[name].is_share]


def draw(parameter: Parameter, name: str, published: dict[str, Any] | None) -> str:
    """A dot for each seed, a line through the means; hollow marks where figures are published."""
    of_lines = [pair for line in parameter.lines.values() for pair in line]
    settings = [setting for _, setting in of_lines] + parameter.beside
    theirs = {setting.label: published_marks(setting, published if is_top1(name) else None) for setting in settings}
    values = [value for setting in settings for value in setting.by_seed(name).values()]
    values += [value for marks in theirs.values() for _, _, value in marks]
    at = spread(sorted({number for number, _ in of_lines}))
    x, texts = tried_scale(list(at.values())), written(list(at))
    chart = Chart(x, round_scale(values), parameter.key, f"{COLUMNS[name].title}, %", texts)
    for setting in parameter.beside:
        _draw_beside(chart, setting, name, theirs[setting.label])
    for number, line in enumerate(parameter.lines.values()):
        aside = (number - (len(parameter.lines) - 1) / 2) * 0.024 * (x.high - x.low)  # not one line on another
        _draw_line(chart, [(at[place] + aside, setting) for place, setting in line], name, theirs, stroke(number))
    return chart.svg(f"{COLUMNS[name].title} against {parameter.key}")


def _draw_line(
    chart: Chart,
    line: list[tuple[float, Setting]],
    name: str,
    theirs: dict[str, list[tuple[str, str, float]]],
    look: tuple[str, str],
) -> None:
    color, dash = look
    means = [(x, statistics.fmean(found.values())) for x, setting in line if (found := setting.by_seed(name))]
    chart.line(means, color, dash)
    for x, setting in line:
        for kind, column, value in theirs[setting.label]:
            chart.mark((x, value), kind, color, f"{setting.label}, published, {column}: {value:g}")
        for seed, value in setting.by_seed(name).items():
            chart.mark((x, value), "seed", color, f"{setting.label}, seed {seed}: {value:.1f}")
    for point in means:
        chart.mark(point, "mean", color, f"mean {point[1]:.1f}")


def _draw_beside(chart: Chart, setting: Setting, name: str, theirs: list[tuple[str, str, float]]) -> None:
    """Across the whole chart, since it has no place on its axis."""
    found = setting.by_seed(name)
    ends = chart.x.low, chart.x.high
    if found:
        mean = statistics.fmean(found.values())
        chart.line([(end, mean) for end in ends], BESIDE, "7 4", width=1.6)
    for kind, column, value in theirs:
        chart.line([(end, value) for end in ends], BESIDE, "1 4", width=1.2)
        chart.mark((ends[0], value), kind, BESIDE, f"{setting.label}, published, {column}: {value:g}")


def is_top1(name: str) -> bool:
    """What published figures are beside; not, say, a preference."""
    return name.endswith(".top1")


def published_marks(setting: Setting, published: dict[str, Any] | None) -> list[tuple[str, str, float]]:
    """kind of mark, column, figure."""
    if published is None or setting.label not in published["rows"]:
        return []
    columns = zip(MARKS, published["columns"], published["rows"][setting.label], strict=False)
    return [(kind, column, value) for kind, column, value in columns if _is_number(value)]


def spread(tried: list[float]) -> dict[float, float]:
    """Where each number stands on the axis: at itself, or all evenly where they are of very different size."""
    gaps = [after - before for before, after in pairwise(tried)]
    return dict(zip(tried, range(len(tried)) if max(gaps) > 10 * min(gaps) else tried, strict=True))


def tried_scale(places: list[float]) -> Scale:
    """With a tick at each, and some room on both sides."""
    room = 0.08 * (places[-1] - places[0])
    return Scale(places[0] - room, places[-1] + room, tuple(places))
