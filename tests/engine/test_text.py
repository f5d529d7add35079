"""Names whose bytes are not UTF-8."""

from __future__ import annotations

import io
import os
import sys

import pytest

from vidssl.engine.text import print_any_name, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (os.fsdecode(b"\xfcbung"), "\\xfcbung"),
        (os.fsdecode(b"caf\xe9 \xc3\xbc.mp4"), "caf\\xe9 ü.mp4"),
        ("\ud800 alone", "\\ud800 alone"),
        ("plain ü", "plain ü"),
    ],
)
def test_bytes_that_are_not_utf8_are_shown_with_a_substitute(
    name: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printable(name) == shown
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    print_any_name()
    print(name, flush=True)
    assert written.getvalue().decode() == f"{shown}\n"
