"""Every run at a glance: a dot for each on a scale from 0 to 100, a row for each setting."""

from __future__ import annotations

from vidssl.report import canvas
from vidssl.report.canvas import Section
from vidssl.report.runs import Setting, count_states
from vidssl.report.states import in_order, state
from vidssl.report.tables import COLUMNS, percent_names

WIDTH, ROW = 300, 32  # pixels
LONGEST = 34  # letters of a label


def section(settings: list[Setting]) -> Section | None:
    names = percent_names(settings)
    plots = [(f"{COLUMNS[name].title}, %", draw(settings, name, COLUMNS[name].title)) for name in names]
    return Section("Every run", plots) if plots else None


def draw(settings: list[Setting], name: str, title: str) -> str:
    """SVG. Below the label of a setting is how many of its runs are not done."""
    sheet = canvas.figure(520, ROW * len(settings) + 30)
    plot = canvas.rows(sheet, 200, 4, (WIDTH, ROW * len(settings)), len(settings), range(0, 101, 25))
    for row, setting in enumerate(settings):
        undone = {name: count for name, count in in_order(count_states([setting])).items() if name != "done"}
        label = canvas.shortened(setting.label, LONGEST)
        text = plot.text(-4, row - 0.2 * bool(undone), label, ha="right", va="center", size=10)
        text.set_gid(f"tooltip:{setting.label}")
        if undone:
            words = ", ".join(f"{count} {name}" for name, count in undone.items())
            worst = max((state(name).color for name in undone), key=lambda color: color == "#b3261e")
            plot.text(-4, row + 0.24, words, ha="right", va="center", size=8, weight=600, color=worst)
        for seed, value in setting.by_seed(name).items():
            canvas.mark(plot, (value, row), "seed", canvas.COLORS[0], f"seed {seed}: {value:.1f}")
    return canvas.svg(sheet, title, tight=True)
