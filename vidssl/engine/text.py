"""Names of files and classes as text. A name whose bytes are not UTF-8 reaches Python with lone surrogates, which no
text file and no terminal takes."""

from __future__ import annotations

import codecs
import re
import sys

_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The same text with a substitute, such as \xfc, for each byte that is not UTF-8."""
    return _SURROGATE.sub(lambda match: _substitute(ord(match[0])), text)


def _substitute(code: int) -> str:
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def print_any_name() -> None:
    """Have stdout and stderr print any name, whatever prints it."""
    codecs.register_error("printable", _replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="printable")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return printable(characters).encode("ascii", "backslashreplace").decode(), error.end
