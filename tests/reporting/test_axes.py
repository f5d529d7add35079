"""Numbers to places."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from vidssl.reporting.axes import Chart, Scale, round_scale, round_step, stroke, tight_scale, written


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0, 100), ["0", "20", "40", "60", "80", "100"]),
        ((3, 97), ["0", "20", "40", "60", "80", "100"]),
        ((2.31, 4.42), ["2.0", "2.5", "3.0", "3.5", "4.0", "4.5"]),
        ((-0.02, 0.03), ["-0.02", "-0.01", "0.00", "0.01", "0.02", "0.03"]),
        ((0, 200000), ["0", "50000", "100000", "150000", "200000"]),
    ],
)
def test_scales_go_from_round_number_to_round_number(values: tuple[float, float], ticks: list[str]) -> None:
    assert written(round_scale(values).ticks) == ticks


def test_a_scale_of_one_value_has_it_in_the_middle() -> None:
    assert tight_scale([5.0]).share(5.0) == 0.5
    assert tight_scale([0.0, 0.0]).share(0.0) == 0.5


def test_a_tight_scale_ends_at_the_values_and_has_round_ticks_within() -> None:
    scale = tight_scale([0, 130])
    assert (scale.low, scale.high) == (0, 130)
    assert written(scale.ticks) == ["0", "50", "100"]


def test_steps_are_one_two_or_five_times_a_power_of_ten() -> None:
    assert [round_step(least) for least in (0.9, 1.0, 1.1, 2.1, 5.1, 0.003)] == [1, 1, 2, 5, 10, 0.005]


def test_the_middle_of_both_axes_is_the_middle_of_the_frame() -> None:
    chart = Chart(tight_scale([0, 10]), round_scale([0, 100]), "x", "y")
    assert chart.at((5, 50)) == ((chart.left + chart.right) / 2, (chart.top + chart.bottom) / 2)
    assert chart.at((0, 0)) == (chart.left, chart.bottom)
    assert chart.at((10, 100)) == (chart.right, chart.top)


def test_tick_labels_that_would_overlap_are_left_out() -> None:
    scale = Scale(0, 100, (0, 1, 2, 50))
    chart = Chart(scale, round_scale([0, 1]), "x", "y", ["zero", "one", "two", "fifty"])
    svg = chart.svg("of some")
    assert "zero" in svg
    assert "one" not in svg
    assert "fifty" in svg
    assert ElementTree.fromstring(svg).tag == "svg"


def test_no_two_of_twenty_lines_look_the_same() -> None:
    assert len({stroke(number) for number in range(20)}) == 20
