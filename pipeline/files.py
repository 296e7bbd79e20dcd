"""Files that are whole or absent: atomic writes, checksummed JSON, locks."""

import errno
import fcntl
import json
import os
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash

TEMPORARY = ".incomplete"
# Object stores show a file when its upload is complete, and not before.
_ATOMIC_PUT = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")


def open_folder(location: str | Path) -> Path:
    """Return the folder at a path or fsspec URL; it need not be there.

    Refuses a URL of a store where a file can be seen half written, or that can't be opened.
    """
    scheme, _, rest = str(location).partition("://")
    if not rest:
        return Path(location)
    if scheme not in _ATOMIC_PUT:
        raise UserError(
            f"{location}: shards go to a local or mounted folder, or to a store that puts files atomically "
            f"({', '.join(_ATOMIC_PUT[:-1])}), not to {scheme}://"
        )
    advice = "check bucket, credentials and endpoint, and that sentence-distill[s3], gcsfs or adlfs is installed"
    with library_errors(f"{location} can't be opened", advice):
        from upath import UPath

        # Listings are not kept: other machines write to the same folder.
        folder = UPath(str(location).rstrip("/"), use_listings_cache=False)
        # Wrong credentials, bucket or network show now, and not after hours.
        folder.fs.ls(folder.path.split("/")[0])
    return cast(Path, folder)


@contextmanager
def library_errors(what: str, advice: str) -> Iterator[None]:
    """Turn whatever a store's or a dataset's many libraries raise into one line: each has errors of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Some answers hold hundreds of names.
        said = textwrap.shorten(str(error), 1000, placeholder=" …") or type(error).__name__
        raise UserError(f"{what}: {said}; {advice}") from error


def is_local(path: Path) -> bool:
    """Return whether `path` lies in this machine's file system, mounts included."""
    return isinstance(path, Path)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a local folder if it is not there, and remove it again if nothing was written into it."""
    if not is_local(folder):
        yield
        return
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for parent in made:
            # A folder with something in it stays; one that the block removed is no reason to keep the others.
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` when the block ends well; otherwise nothing is left of it.

    Local: a temporary name beside it, fsync, rename, fsync of the folder. In an object store: a temporary file
    here, then one put. Of a link the file that it leads to is replaced; a device or a pipe is written to as it is.
    """
    if not is_local(path):
        with tempfile.NamedTemporaryFile() as remote:
            yield cast(BinaryIO, remote)
            remote.flush()
            with library_errors(f"{path} can't be written", "see to the store, then run the same command again"):
                path.fs.put_file(remote.name, path.path)  # type: ignore[attr-defined]
        return
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
        return
    if path.is_symlink():
        path = path.resolve()
    # Two writers of one file, jobs whose slices overlap for example, must not write into one temporary.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY}")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Let what a library in Rust raises where the system refuses to write below `path` be the OSError that it is.

    safetensors has a class of its own for it and tokenizers none, but both end their message as Rust does.
    """
    try:
        yield
    except Exception as error:
        if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def remove_temporaries(folder: Path) -> None:
    """Remove what runs that died left in a folder of shards, whose lock is held; files of others are not touched."""
    for pattern in ("shard-*", "plan.*", "manifest.json*", "sources.json*", "rejected.jsonl*", "teacher/*"):
        for path in folder.glob(pattern + TEMPORARY):
            path.unlink(missing_ok=True)
    # Of jobs of --slice: none is alive while another holds the folder for itself.
    for path in folder.glob(".lock-*-of-*"):
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON for people to read, without the checksum of `dump_json`; see `replacing`."""
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def dump_json(value: dict[str, Any]) -> bytes:
    """Return `value` as JSON with sorted keys and a field `checksum` over all the others; always the same bytes."""

    def canonical(value: dict[str, Any]) -> str:
        return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)

    return (canonical({**value, "checksum": bytes_hash(canonical(value).encode())}) + "\n").encode()


def load_json(path: Path) -> dict[str, Any]:
    """Read what `dump_json` wrote, without its checksum; a ValueError says that the file was changed or damaged."""
    content = path.read_bytes()
    value = json.loads(content)
    # All bytes are compared, not only the checksum: a changed blank would not show in the parsed value.
    if not isinstance(value, dict) or value.pop("checksum", None) is None or content != dump_json(value):
        raise ValueError("does not match its checksum")
    return value


# One run a folder: a lock that dies with its process.

LOCK_NAME = ".lock"


@contextmanager
def lock_folder(
    folder: Path,
    *,
    shared: bool = False,
    name: str = LOCK_NAME,
    wait: bool = False,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Hold `folder` for this process; the lock of a process that died, however it died, is free.

    An object store has no such lock. There, two runs at once do the same work twice and leave the same bytes.
    `shared` lets others in that ask for it shared: the jobs of an array. With `wait` this waits until the lock, in the
    file `name`, is free, after a call of `waiting`; otherwise a lock that another process holds is an error.
    """
    if not is_local(folder):
        yield
        return
    path = folder / name
    with _locked(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, waiting if wait else None) as file:
        file.truncate(0)
        if shared:
            # The file stays: a fresh one would not show the others that still hold it.
            yield
            return
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path, kind: int, waiting: Callable[[], None] | None) -> TextIO:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                file.seek(0)
                holder = file.read().strip()
                file.close()
                raise UserError(
                    f"{path.parent} is in use by {f'process {holder}' if holder else 'jobs of --slice'} ({path.name}); "
                    "wait for it to end, or write to another folder"
                ) from None
            waiting()
            fcntl.flock(file, kind)
        except OSError as error:
            file.close()
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            raise UserError(
                f"{path.parent} lies in a file system without locks ({error.strerror}); mount it with them, "
                "or write to another folder"
            ) from error
        # The holder before may have removed the file between our opening and locking it.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
