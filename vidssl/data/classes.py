"""Names of classes, as they are compared between splits, data sets and checkpoints."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence


def class_key(name: str) -> str:
    """The form in which names are compared: case, blanks, underscores and composed accents do not count."""
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").casefold().split())


def are_numbers(names: Sequence[str]) -> bool:
    """Whether classes are called 0, 1, ..., which says nothing of what they are."""
    return {_key(name) for name in names} == {str(number) for number in range(len(names))}


def lacking(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names of `wanted` that `known` does not have."""
    key = _comparing(wanted, known)
    there = {key(name) for name in known}
    return [name for name in wanted if key(name) not in there]


def places(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    """Where each of the wanted names stands among the known ones, which have all of them."""
    key = _comparing(wanted, known)
    place = {key(name): number for number, name in enumerate(known)}
    return [place[key(name)] for name in wanted]


def _key(name: str) -> str:
    return str(int(name)) if name.isdecimal() else class_key(name)


def _comparing(*lists: Sequence[str]) -> Callable[[str], str]:
    """The form in which to compare: names as they are where two of one list would otherwise be the same."""
    unlike = all(len({_key(name) for name in names}) == len(names) for names in lists)
    return _key if unlike else str
