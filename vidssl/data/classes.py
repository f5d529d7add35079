"""Names of classes, as they are compared between splits, data sets and checkpoints."""

from __future__ import annotations


def class_key(name: str) -> str:
    """The form in which names are compared: case, blanks and underscores make no difference."""
    return " ".join(name.replace("_", " ").casefold().split())
