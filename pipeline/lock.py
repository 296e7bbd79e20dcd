"""One run a folder: a lock that dies with its process."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import is_local

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
