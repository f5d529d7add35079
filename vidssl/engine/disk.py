"""Disks that are full, read-only or broken: one line that says which, and how much room there is.

Nothing here imports torch.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vidssl.registry import ConfigError, RunError

SHARED_MEMORY = "/dev/shm"
FULL = (errno.ENOSPC, errno.EDQUOT)
REASONS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "read-only file system",
    errno.EIO: "the disk answers with an input/output error",
    errno.ESTALE: "the network file system has lost this file (stale file handle)",
}
# Libraries that keep nothing but a text of the system's answer: safetensors, torch's shared memory
IN_WORDS = re.compile(r"\(os error (\d+)\)|: No space left on device \((\d+)\)")


class DiskError(RunError):
    """A disk does not take what the run writes; the same command goes on when it does."""


@contextmanager
def writing(path: Path, needed: Callable[[], int] | None = None) -> Iterator[None]:
    """Raise DiskError with the folder of `path` for whatever says within that its disk is full, read-only or broken.

    needed: bytes that the file takes, asked after a failure alone.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        number = errno_of(error)
        if number is None:
            raise
        raise disk_error(path.parent, number, needed) from None


def disk_error(folder: Path, number: int, needed: Callable[[], int] | None = None) -> DiskError:
    reason, goes_on = REASONS[number], "when it can be written"
    if number in FULL:
        goes_on = "when there is room"
        if number == errno.ENOSPC and not _inodes_left(folder):
            reason += " for another file (inodes)"
        else:
            reason += f" ({human(free(folder))} free{f', {human(needed())} needed' if needed else ''})"
    return DiskError(f"{shown(folder)}: {reason}; the same command goes on {goes_on}")


def translate_error(error: BaseException, places: tuple[Path, ...] = ()) -> DiskError | None:
    """The DiskError of an error that no `writing` has met, None if it is of another kind.

    places: folders that the run writes to, of which the one with the least room is named if the error names none.
    """
    number = None if isinstance(error, (ConfigError, RunError)) else errno_of(error)
    if number is None:
        return None
    named = [each.filename for each in _chain(error) if isinstance(each, OSError) and isinstance(each.filename, str)]
    if named:
        return disk_error(Path(named[0]).parent, number)
    candidates = [existing(place) for place in (*places, Path(tempfile.gettempdir()), Path(SHARED_MEMORY))]
    return disk_error(min(candidates, key=free), number)


def errno_of(error: BaseException) -> int | None:
    """The system's answer behind an error, if it is one of REASONS."""
    for each in _chain(error):
        numbers = [each.errno] if isinstance(each, OSError) else []
        numbers += [int(first or second) for first, second in IN_WORDS.findall(str(each))]
        for number in numbers:
            if number in REASONS:
                return number
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ if error.__cause__ or error.__suppress_context__ else error.__context__


def unwritable(key: str, folder: Path) -> list[str]:
    """A line for a user if nothing can be written into a folder that may not exist yet, [] otherwise."""
    reason = cannot_be_made(folder)
    what = "cannot be written" if os.path.isdir(folder) else "cannot be made"
    return [] if reason is None else [f"{key}={folder}: {what} ({reason}); choose a folder that can be written"]


def cannot_be_made(folder: Path) -> str | None:
    """Why files cannot be written into a folder that may not exist yet; None if they can. Makes nothing."""
    folder = folder.absolute()
    try:
        above = existing(folder)
        if not above.is_dir():
            return f"{shown(above)} is a {'link to what is not there' if above.is_symlink() else 'file'}"
        if not os.access(above, os.W_OK | os.X_OK):
            return _why_not(above) + ("" if above == folder else f": {shown(above)}")
        for name in folder.relative_to(above).parts:
            if len(os.fsencode(name)) > os.pathconf(above, "PC_NAME_MAX"):
                return f"name too long: {name[:20]}..."
    except OSError as error:
        return f"{(error.strerror or str(error)).lower()}"
    return None


def _why_not(folder: Path) -> str:
    """os.access says no more than that a folder cannot be written."""
    return "read-only file system" if os.statvfs(folder).f_flag & os.ST_RDONLY else "no permission to write"


def existing(path: Path) -> Path:
    """The path, or the first above it that exists, be it a file. Raises OSError if that cannot be looked at."""
    path = path.absolute()
    for each in (path, *path.parents):
        try:
            each.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return each
    return path


def free(folder: Path) -> int:
    """Bytes that may still be written."""
    status = os.statvfs(existing(folder))
    return status.f_bavail * status.f_frsize


def size(folder: Path) -> int:
    """Bytes of the whole file system."""
    status = os.statvfs(existing(folder))
    return status.f_blocks * status.f_frsize


def _inodes_left(folder: Path) -> bool:
    status = os.statvfs(existing(folder))
    return status.f_files == 0 or status.f_favail > 0  # file systems without a limit say 0 of 0


def shown(path: Path) -> str:
    """Relative to the working directory where it lies in it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) and path != here else str(path)


def human(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
