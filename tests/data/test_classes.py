from __future__ import annotations

import pytest

from vidssl.data.classes import are_numbers, lacking, places


@pytest.mark.parametrize(
    ("wanted", "known", "found"),
    [
        (["down", "up"], ["down", "up"], [0, 1]),
        (["up", "down"], ["down", "up"], [1, 0]),
        (["High Jump", "pull ups"], ["run", "pull_ups", "high_jump"], [2, 1]),
        (["0", "1", "2"], ["00", "02", "01"], [0, 2, 1]),
        (["a", "A"], ["A", "a"], [1, 0]),  # a data set in which case tells classes apart
    ],
)
def test_a_class_is_found_by_its_name(wanted: list[str], known: list[str], found: list[int]) -> None:
    assert lacking(wanted, known) == []
    assert places(wanted, known) == found


def test_names_that_are_not_known_are_told() -> None:
    assert lacking(["down", "alpha", "beta"], ["up", "Down"]) == ["alpha", "beta"]
    assert lacking(["a", "A", "b"], ["a", "B"]) == ["A", "b"]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [(["0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9"], True), (["00", "01"], True), (["3", "7"], False),
     (["0", "one"], False)],
)  # fmt: skip
def test_classes_called_by_their_numbers_have_no_names(names: list[str], numbers: bool) -> None:
    assert are_numbers(names) == numbers
