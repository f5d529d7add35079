from __future__ import annotations

from tests.compare.timing import Row, compared, interleaved


def test_candidates_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    now = iter(range(1000))
    found = interleaved(
        {name: lambda name=name: calls.append(name) for name in "abc"}, 5, clock=lambda: float(next(now))
    )
    assert {name: len(each) for name, each in found.items()} == {"a": 5, "b": 5, "c": 5}
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1, "not always in the same order"


def test_the_ratio_is_the_median_of_the_rounds_own() -> None:
    row = compared("data", "x", {"ours": [1, 2, 4], "theirs": [3, 8, 40]}, "ours", "theirs", least=3.5)
    assert (row.ratio, row.low, row.high) == (4, 3.5, 7)
    assert row.is_met
    assert not row._replace(least=5.0).is_met
    assert Row("data", "x", "y", 0.5, 0.4, 0.6).is_met, "nothing is promised"
