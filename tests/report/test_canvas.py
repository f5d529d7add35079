"""Figures as SVG and as pixels."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from tests.report.conftest import texts
from vidssl.report import canvas


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((3, 97), [0, 20, 40, 60, 80, 100]),
        ((2.31, 4.42), [2, 2.5, 3, 3.5, 4, 4.5]),
        ((-0.02, 0.03), [-0.02, -0.01, 0, 0.01, 0.02, 0.03]),
    ],
)
def test_the_vertical_axis_goes_from_round_number_to_round_number(values: tuple, ticks: list[float]) -> None:
    sheet, plot = canvas.chart("x", "y")
    plot.plot(values)
    canvas.svg(sheet, "")
    assert list(plot.get_yticks()) == pytest.approx(ticks)
    assert plot.get_ylim() == pytest.approx((ticks[0], ticks[-1]))


@pytest.mark.parametrize("value", [5.0, 0.0, -3.0])
def test_a_single_value_is_within_its_axis(value: float) -> None:
    sheet, plot = canvas.chart("x", "y")
    plot.plot([value, value])
    canvas.svg(sheet, "")
    low, high = plot.get_ylim()
    assert low < value < high


def test_no_two_of_twenty_lines_look_the_same() -> None:
    assert len({canvas.line_style(number) for number in range(20)}) == 20


def drawing(label: str) -> str:
    sheet, plot = canvas.chart("step", label)
    plot.plot([0, 1], [0, 1], linestyle="dashed")
    canvas.mark(plot, (0.5, 0.5), "circle", "#ff0000", label)
    return canvas.svg(sheet, label)


def test_svg_is_the_same_text_each_time_and_refers_to_nothing_outside() -> None:
    text = drawing("loss")
    assert text == drawing("loss")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg", "a file of its own has to name it"
    links = [value for element in root.iter() for name, value in element.items() if name.endswith("href")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not {"script", "style", "image", "metadata"} & {element.tag.rpartition("}")[2] for element in root.iter()}


def test_names_are_shown_as_they_are_in_text_and_tooltips() -> None:
    name = """50$ and $5 <b>"5" > 4 & '3'</b> id="a_1" font-family: x; \u8df3\u821e"""
    root = ElementTree.fromstring(drawing(name))
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    assert titles == [name, name]
    assert name in texts(drawing(name))


def test_pixels_are_pasted_one_for_one() -> None:
    frame = np.random.RandomState(0).randint(0, 256, (7, 11, 3), np.uint8)
    for width in range(60, 160, 7):
        sheet = canvas.figure(width, 97)
        canvas.paste(sheet, frame, 20, 30)
        shown = canvas.image(sheet)
        assert shown.shape == (97, width, 3)
        np.testing.assert_array_equal(shown[30:37, 20:31], frame)


def test_a_text_is_cut_to_its_room() -> None:
    text = canvas.note(canvas.figure(200, 20), 0, 10, "a class whose name has no end at all")
    canvas.fitted(text, 100)
    assert text.get_window_extent().width <= 100
    assert text.get_text().startswith("a class")
    assert text.get_text().endswith("...")
