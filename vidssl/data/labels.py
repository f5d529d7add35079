"""One numbering of classes for both splits of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vidssl.data.classes import class_key
from vidssl.registry import ConfigError


def printable(name: str) -> str:
    """A name in one line of text: control characters, line ends and bytes that are not UTF-8 as escapes."""
    return name if name.isprintable() else "".join(map(_escaped, name))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)  # Python reads byte b that is not UTF-8 as U+DC00 + b
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


class SplitClasses(NamedTuple):
    """The classes of one split, as its list or its folders have them."""

    source: str  # that list or folder, for messages
    names: Sequence[str]  # each once; numbers as text
    numbered: bool = False
    unlabelled: str = ""  # why there are none
    empty: Sequence[str] = ()  # folders that hold no video and therefore are no classes


class Numbering:
    """Class names -> labels, the same for both splits of a data set.

    The classes are those of the training split; names of the other are looked up in any spelling, unless two classes
    differ in nothing else. Numbers are their own labels. Raises ConfigError where the test split is wanted and has
    classes that training lacks, or names where training has numbers.
    """

    def __init__(self, wanted: str, train: SplitClasses | None, test: SplitClasses | None):
        self.names: list[str] = []
        self.remarks: list[str] = []
        self._key, self._labels = class_key, {}
        here = [split for split in (train, test) if split is not None]
        first = here[0]
        empty = [printable(f"{split.source}/{name}") for split in here for name in split.empty]
        if empty:
            self.remarks.append(f"{len(empty)} folders hold no video and are no classes, for example {empty[0]}")
        self.unlabelled = next((split.unlabelled for split in here if split.unlabelled), "")
        if self.unlabelled:
            if any(split.names for split in here):
                self.remarks.append(f"{self.unlabelled}: no video of the data set gets a label")
            return
        if train and test and wanted == "test" and train.numbered != test.numbered:
            forms = {True: "numbers", False: "names"}
            raise ConfigError(
                f"{test.source}: has classes by {forms[test.numbered]}, {train.source} by {forms[train.numbered]}; "
                "give both splits in one form: lists of one kind, or class folders"
            )
        alike = [split for split in here if split.numbered == first.numbered]
        if first.numbered:
            highest = max((int(name) for split in alike for name in split.names), default=-1)
            self.names = [str(label) for label in range(highest + 1)]
        else:
            self.names = sorted(first.names)
        keys = {class_key(name) for name in self.names}
        self._key = class_key if len(keys) == len(self.names) else str
        self._labels = {self._key(name): label for label, name in enumerate(self.names)}
        if train and test and not first.numbered:
            self._find_strangers(wanted, train, test)
        self._remark(alike)

    def label(self, name: str) -> int | None:
        return self._labels.get(self._key(name))

    def labels(self, names: Iterable[str]) -> dict[str, int]:
        """Name -> label, of those that are classes of the data set; of none where it has no classes."""
        return {name: self._labels[self._key(name)] for name in names if self._key(name) in self._labels}

    def _find_strangers(self, wanted: str, train: SplitClasses, test: SplitClasses) -> None:
        """Refuse classes that have no training video, or tell of them where only training is wanted."""
        strangers = sorted(name for name in test.names if self._key(name) not in self._labels)
        if not strangers:
            return
        problem = (
            f"{test.source}: class {printable(strangers[0])} of it is not in {train.source}"
            + (f", and {len(strangers) - 1} more classes are not" if len(strangers) > 1 else "")
            + f" ({len(self.names)} classes)"
        )
        if wanted == "test":
            raise ConfigError(f"{problem}; correct the names, or add training videos of these classes")
        self.remarks.append(problem)

    def _remark(self, splits: Sequence[SplitClasses]) -> None:
        if self._key is str:
            self.remarks.append(
                "some classes differ only in case, blanks or underscores; they count as different classes"
            )
        for split in splits:
            have = {self._key(name) for name in split.names}
            self.remarks += without_video(
                [name for name in self.names if self._key(name) not in have], self.names, split.source
            )


def without_video(missing: Sequence[str], names: Sequence[str], source: str) -> list[str]:
    """The remark on classes without a video, if there are any."""
    example = printable(missing[0]) if missing else ""
    return (
        [f"{len(missing)} of {len(names)} classes have no video in {source}, for example {example}"] if missing else []
    )
