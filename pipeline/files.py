"""Files that are whole or absent: atomic writes, checksummed JSON, locks."""

import errno
import fcntl
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.hashing import bytes_hash

TEMPORARY = ".incomplete"
# Object stores show a file when its upload is complete, and not before.
_ATOMIC_PUT = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")


def open_folder(location: str | Path) -> Path:
    """Return the folder at a path or fsspec URL; it need not be there.

    Raises:
        UserError: a URL of a store where a file can be seen half written, or whose package is not installed.
    """
    scheme, _, rest = str(location).partition("://")
    if not rest:
        return Path(location)
    if scheme not in _ATOMIC_PUT:
        raise UserError(
            f"{location}: shards go to a local or mounted folder, or to a store that puts files atomically "
            f"({', '.join(_ATOMIC_PUT[:-1])}), not to {scheme}://"
        )
    try:
        from upath import UPath

        # Listings are not kept: other machines write to the same folder.
        folder = UPath(str(location).rstrip("/"), use_listings_cache=False)
        # Wrong credentials, bucket or network show now, each store with errors of its own, and not after hours.
        folder.fs.ls(folder.path.split("/")[0])
    except ImportError as error:
        raise UserError(
            f"{location}: {error}; install what opens it: pip install 'sentence-distill[s3]', or gcsfs, or adlfs "
            "beside universal-pathlib"
        ) from error
    except Exception as error:
        raise UserError(
            f"{location} can't be opened: {first_line(error)}; check bucket, credentials and endpoint"
        ) from error
    return cast(Path, folder)


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
            try:
                path.fs.put_file(remote.name, path.path)  # type: ignore[attr-defined]
            except Exception as error:  # each store has errors of its own
                raise UserError(
                    f"{path} can't be written: {first_line(error)}; see to the store, then run the same command again"
                ) from error
        return
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
        return
    if path.is_symlink():
        path = path.resolve()
    # Two writers of one file, jobs whose slices overlap for example, must not write into one temporary.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
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
    """Return `value` as JSON with sorted keys, ending in a field `checksum` over all the others.

    The same value always gives the same bytes.
    """
    return (_canonical({**value, "checksum": _checksum(value)}) + "\n").encode()


def load_json(path: Path) -> dict[str, Any]:
    """Read what `dump_json` wrote, without its checksum.

    Raises:
        ValueError: not JSON, or the checksum does not match: the file was changed or damaged.
    """
    content = path.read_bytes()
    value = json.loads(content)
    if not isinstance(value, dict) or "checksum" not in value:
        raise ValueError("has no checksum")
    checksum = value.pop("checksum")
    # The bytes are compared as well: a changed blank would not show in the parsed value.
    if checksum != _checksum(value) or content != dump_json(value):
        raise ValueError("does not match its checksum")
    return value


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)


def _checksum(value: dict[str, Any]) -> str:
    return bytes_hash(_canonical(value).encode())


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

    Args:
        folder: what to hold.
        shared: let others in that ask for it shared: the jobs of an array.
        name: of the lock's file.
        wait: until it is free, instead of being refused.
        waiting: called before each wait.

    Raises:
        UserError: another process that lives holds it.
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
