"""Finds the files that a run reads, and opens them.

In: files, folders and patterns as a user names them. Out: `Source`s in a fixed order, and their bytes, decompressed.
Knows nothing of documents.
"""

import glob
import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .records import Warn
from .side_files import finish, sync, unfinished

READ = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md", ".parquet")
COMPRESSIONS = (".gz", ".zst")
NAMES_SHOWN = 3
CHUNK = 1 << 16


@dataclass(frozen=True)
class Source:
    """A file of documents.

    Attributes:
        path: the file.
        name: what messages and a folder of outputs call it: its path below the folder that was named, or its name.
        suffix: says its type, one of `READ`.
        compression: one of `COMPRESSIONS`, or "".
        stream: where to read instead of opening `path`: standard input.
        is_spooled: `path` holds what was read of standard input.
    """

    path: Path
    name: str
    suffix: str
    compression: str = ""
    stream: BinaryIO | None = None
    is_spooled: bool = False


def split_suffixes(path: Path) -> tuple[str, str]:
    """Returns (type, compression) of a file name in lower case: (".jsonl", ".gz"); either may be ""."""
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    return (path.with_suffix("") if compression else path).suffix.lower(), compression


def find_sources(inputs: Sequence[str | Path | Source], skipped: Collection[Path], warn: Warn) -> list[Source]:
    """Returns the files that `inputs` name, in their order, those of folders and patterns sorted, each file once.

    Args:
        inputs: files, folders (with all folders below them), and patterns ("data/*.jsonl", "data/**/*.txt");
            `Source`s are taken as they are.
        skipped: files and folders that folders and patterns do not find: this run's outputs.
        warn: gets the names of files of other types that were left out.

    Raises:
        ValueError: a file of another type, a folder or pattern without files that can be read.
        FileNotFoundError: no such file.
    """
    found: dict[Path, Source] = {}
    others: list[Path] = []
    for given in inputs:
        for source in [given] if isinstance(given, Source) else _expand(Path(given), skipped, others):
            found.setdefault(source.path.resolve(), source)
    if others:
        shown = ", ".join(map(str, others[:NAMES_SHOWN])) + (", ..." if len(others) > NAMES_SHOWN else "")
        warn(f"{len(others)} files of other types are not read: {shown}")
    return list(found.values())


def _expand(path: Path, skipped: Collection[Path], others: list[Path]) -> Iterator[Source]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        root, what = path, f"the folder {path}"
    elif not path.exists() and glob.has_magic(str(path)):
        files = sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
        root, what = _fixed_part(path), f"what {str(path)!r} matches"
    else:
        yield named_source(path)
        return
    readable = False
    for file in files:
        if any(part.startswith(".") for part in file.relative_to(root).parts) or _lies_in(file, skipped):
            continue
        suffix, compression = split_suffixes(file)
        if suffix in READ:
            readable = True
            yield Source(file, file.relative_to(root).as_posix(), suffix, compression)
        else:
            others.append(file)
    if not readable:
        raise ValueError(f"{what} holds no file that can be read: names must end in one of {', '.join(READ)}.")


def named_source(path: Path) -> Source:
    """Returns the file at `path`; raises as `find_sources`."""
    suffix, compression = split_suffixes(path)
    if suffix not in READ:
        raise ValueError(f"cannot read {path.name!r}: its name must end in one of {', '.join(READ)}.")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file.")
    return Source(path, path.name, suffix, compression)


def _fixed_part(pattern: Path) -> Path:
    """Returns the folder above the first part of a pattern that has wildcards."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[len(fixed.parts) :]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _lies_in(file: Path, places: Collection[Path]) -> bool:
    resolved = file.resolve()
    return any(resolved == place or place in resolved.parents for place in places)


def standard_input(form: str, stream: BinaryIO) -> Source:
    """Returns standard input as a file of the type `form` ("txt", "jsonl", ...)."""
    if f".{form}" not in READ:
        raise ValueError(f"cannot read {form!r}: it must be one of {', '.join(name[1:] for name in READ)}.")
    return Source(Path(f"standard input.{form}"), "standard input", f".{form}", "", stream)


def spooled(source: Source, path: Path, resume: bool) -> Source:
    """Copies standard input to a file, so that it can be read again; the file appears when it is complete.

    Args:
        source: standard input.
        path: the file.
        resume: go on with what an interrupted run read, where there is such a file: then nothing is read.

    Raises:
        FileExistsError: there is such a file, and `resume` is false.
    """
    if path.exists() and not resume:
        raise FileExistsError(
            f"{path} holds what an interrupted run read of standard input: go on with --resume, or start anew with "
            "--overwrite."
        )
    if not path.exists() and source.stream is not None:
        with unfinished(path) as file:
            shutil.copyfileobj(source.stream, file)
            sync(file)
            file.close()
            finish(path)
    return Source(path, source.name, source.suffix, is_spooled=True)


class Meter:
    """How many bytes of a run's files were read so far; written by one thread, read by any."""

    def __init__(self) -> None:
        """Nothing was read yet."""
        self.before = 0  # bytes of whole files
        self.current: BinaryIO | None = None

    def bytes_read(self) -> int:
        """Returns the bytes read, those ahead of the current document included."""
        current = self.current
        try:
            return self.before + (current.tell() if current is not None else 0)
        except ValueError:  # closed meanwhile
            return self.before


@contextmanager
def opened(source: Source, meter: Meter | None = None) -> Iterator[BinaryIO]:
    """Opens a file, decompressed; `meter` follows what is read of it.

    Raises:
        ValueError: a damaged or torn compressed file, also while it is read.
        ImportError: .zst without zstandard.
    """
    if source.stream is not None:
        yield source.stream
        return
    with source.path.open("rb") as raw:
        if meter is not None:
            meter.current = raw
        try:
            with _decompressed(raw, source.compression) as file:
                yield _seekable(file, source) if source.suffix == ".parquet" else file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{source.name} is not a whole {source.compression} file: {error}") from error
        finally:
            if meter is not None:
                meter.before, meter.current = meter.before + source.path.stat().st_size, None


def _decompressed(raw: BinaryIO, compression: str) -> Any:
    if compression == ".gz":
        return gzip.open(raw, "rb")
    if compression == ".zst":
        return io.BufferedReader(_Zstandard(raw), CHUNK)
    return raw


def _seekable(file: BinaryIO, source: Source) -> BinaryIO:
    """Returns the file itself, or its decompressed content: parquet is read from its end."""
    if not source.compression:
        return file
    whole = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its last reference
    shutil.copyfileobj(file, whole)
    whole.seek(0)
    return whole


class _Zstandard(io.RawIOBase):
    """Reads Zstandard frames; an EOFError where the last one is torn, which zstandard's own reader passes over."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.library = raw, zstandard()
        self.frame: Any = None
        self.ahead, self.rest = b"", b""  # decompressed; compressed and not yet looked at

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ahead:
            compressed = self.rest or self.raw.read(CHUNK)
            self.rest = b""
            if not compressed:
                if self.frame is not None:
                    raise EOFError("it ends too early")
                return 0
            self.frame = self.frame or self.library.ZstdDecompressor().decompressobj()
            try:
                self.ahead = self.frame.decompress(compressed)
            except self.library.ZstdError as error:
                raise EOFError(str(error)) from error
            if self.frame.eof:
                self.rest, self.frame = self.frame.unused_data, None
        size = min(len(buffer), len(self.ahead))
        buffer[:size], self.ahead = self.ahead[:size], self.ahead[size:]
        return size


def zstandard() -> Any:
    """Returns the zstandard library; an ImportError that says how to install it."""
    try:
        import zstandard as library
    except ImportError as error:
        raise ImportError(".zst files need zstandard: pip install 'decodner-hf[io]'.") from error
    return library
