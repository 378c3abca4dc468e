"""Creates the files beside an output: locks, journals, and outputs that are not finished yet.

In: paths. Out: open files. No file is reached through a symbolic link put under its name; an output takes its
name when it is complete and on the disk.
Knows nothing of what the files hold.
"""

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # network file systems
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
BINARY = getattr(os, "O_BINARY", 0)  # Windows


def open_side_file(path: Path, mode: str) -> BinaryIO:
    """Opens a side file without following a symbolic link.

    Args:
        path: the file.
        mode: "x" creates it for writing, "r+" opens it for reading and writing, "a" for appending, made if need be.

    Raises:
        FileExistsError: "x", and there is one.
        OSError: a symbolic link, or something else that is not a file, under that name.
    """
    flags = {
        "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
        "r+": os.O_RDWR,
        "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    }[mode]
    if path.is_symlink():
        raise OSError(f"{path} is a symbolic link, which is not followed: remove it.")
    descriptor = os.open(path, flags | NO_FOLLOW | BINARY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is in the way: it is not a file. Remove it.")
    file: BinaryIO = os.fdopen(descriptor, {"x": "wb", "r+": "rb+", "a": "ab"}[mode])  # type: ignore[assignment]
    return file


def sync(file: BinaryIO) -> None:
    """Brings what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def unfinished(path: Path) -> Iterator[BinaryIO]:
    """Gives a file beside `path` to write to, which vanishes afterwards unless `finish` gave it its name."""
    beside = unfinished_path(path)
    beside.unlink(missing_ok=True)
    try:
        with open_side_file(beside, "x") as file:
            yield file
    finally:
        beside.unlink(missing_ok=True)


def finish(path: Path) -> None:
    """Gives the complete file that `unfinished` opened its name; to be called once it is on the disk."""
    unfinished_path(path).replace(path)
    if sys.platform != "win32":
        with suppress(OSError):  # some network file systems cannot
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def unfinished_path(path: Path) -> Path:
    """Returns the name under which `path` is written until it is complete."""
    return path.with_name(path.name + ".unfinished")


@contextmanager
def locked(path: Path, what: Path) -> Iterator[None]:
    """Keeps other runs out while it is held; does nothing where the system has no such locks.

    Args:
        path: the lock file, removed afterwards.
        what: what other runs must not write, for the message.

    Raises:
        BlockingIOError: another run holds it.
    """
    if sys.platform == "win32":
        yield
        return
    with open_side_file(path, "a") as file:
        if not _lock(file, path):
            raise BlockingIOError(f"another run is writing {what}: wait for its end, or name another output.")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(file: BinaryIO, path: Path) -> bool:
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    # The run that held it may have removed it meanwhile: then the locked file is no longer the one that others see.
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
