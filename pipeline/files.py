"""Files that are complete or absent: atomic writes, checksummed JSON, locks."""

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
# Stores where a file becomes visible only when its upload is complete.
_ATOMIC_PUT = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")


def open_folder(location: str | Path) -> Path:
    """Return the folder at a path or fsspec URL; it need not exist.

    Stores that show half-written files are refused, and so is a URL that can't be opened.
    """
    scheme, _, rest = str(location).partition("://")
    if not rest:
        return Path(location)
    if scheme not in _ATOMIC_PUT:
        raise UserError(
            f"{location}: shards go to a local or mounted folder, or to a store that writes files atomically "
            f"({', '.join(_ATOMIC_PUT[:-1])}), not to {scheme}://"
        )
    advice = "check bucket, credentials and endpoint, and that sentence-distill[s3], gcsfs or adlfs is installed"
    with library_errors(f"{location} can't be opened", advice):
        from upath import UPath

        # No cache of listings, because other machines write to the same folder.
        folder = UPath(str(location).rstrip("/"), use_listings_cache=False)
        # Wrong credentials, a wrong bucket or a network problem is an error now, and not after hours.
        folder.fs.ls(folder.path.split("/")[0])
    return cast(Path, folder)


@contextmanager
def library_errors(what: str, advice: str) -> Iterator[None]:
    """Turn any exception of a store's or dataset's libraries, which share no class, into a one-line `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Some messages list hundreds of names.
        said = textwrap.shorten(str(error), 1000, placeholder=" …") or type(error).__name__
        raise UserError(f"{what}: {said}; {advice}") from error


def is_local(path: Path) -> bool:
    """Return True if `path` is in the file system of this machine, mounts included."""
    return isinstance(path, Path)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Create a local folder if it is missing, and remove it after the block if it is still empty."""
    if not is_local(folder):
        yield
        return
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for parent in made:
            # Fails for a folder that is not empty, which stays, and for one that the block has removed.
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` when the block succeeds, and is removed when it fails.

    A local file gets a temporary name in the same folder, then fsync, rename, and fsync of the folder. For an object
    store, a local temporary file is uploaded at the end. The target of a link is replaced, not the link; devices and
    pipes are written to directly.
    """
    if not is_local(path):
        with tempfile.NamedTemporaryFile() as remote:
            yield cast(BinaryIO, remote)
            remote.flush()
            with library_errors(f"{path} can't be written", "check the store, then run the same command again"):
                path.fs.put_file(remote.name, path.path)  # type: ignore[attr-defined]
        return
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
        return
    if path.is_symlink():
        path = path.resolve()
    # The name is unique, because two jobs with overlapping slices may write the same file at the same time.
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
    """Turn errors of Rust libraries that come from the operating system, on writing to `path`, into an OSError.

    safetensors and tokenizers raise different classes for it, but both messages end with Rust's "(os error N)".
    """
    try:
        yield
    except Exception as error:
        if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files of runs that died from a folder of shards, which must be locked; keep all other files."""
    for pattern in ("shard-*", "plan.*", "manifest.json*", "sources.json*", "rejected.jsonl*", "teacher/*"):
        for path in folder.glob(pattern + TEMPORARY):
            path.unlink(missing_ok=True)
    # Locks of --slice jobs: none of these jobs is alive while this process holds the exclusive lock.
    for path in folder.glob(".lock-*-of-*"):
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as readable JSON, without the checksum of `dump_json`; see `replacing`."""
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def dump_json(value: dict[str, Any]) -> bytes:
    """Serialize `value` deterministically, with sorted keys and a field `checksum` over all the others."""

    def canonical(value: dict[str, Any]) -> str:
        return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)

    return (canonical({**value, "checksum": bytes_hash(canonical(value).encode())}) + "\n").encode()


def load_json(path: Path) -> dict[str, Any]:
    """Read a file of `dump_json`, without its checksum; raise a ValueError if it was changed or damaged."""
    content = path.read_bytes()
    value = json.loads(content)
    # Serialized again and compared byte by byte: the parsed value alone would not reveal changed white space.
    if not isinstance(value, dict) or value.pop("checksum", None) is None or content != dump_json(value):
        raise ValueError("does not match its checksum")
    return value


# One run per folder: locks that the operating system releases when their process dies.

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
    """Lock `folder` for this process; the lock of a process that died is released, however it died.

    A `shared` lock can be held by several processes, such as the jobs of an array. With `wait`, `waiting` is called and
    the lock, the file `name`, is waited for; otherwise a lock that another process holds is an error. Object stores
    have no locks: there, two runs at once do the same work twice and write the same bytes.
    """
    if not is_local(folder):
        yield
        return
    path = folder / name
    with _locked(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, waiting if wait else None) as file:
        file.truncate(0)
        if shared:
            # The file stays, because other processes may still hold a lock on it, which a new file would not have.
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
                f"{path.parent} is in a file system without locks ({error.strerror}); mount it with locks, "
                "or write to another folder"
            ) from error
        # The previous holder may have removed the file after it was opened here and before it was locked: try again.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
