"""One run a folder: a lock that dies with its process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sentence_distill.data.errors import UserError

LOCK_NAME = ".lock"


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the lock of a process that died, however it died, is free.

    Raises:
        UserError: another process that lives holds it.
    """
    path = folder / LOCK_NAME
    with _locked(path) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> TextIO:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "?"
            file.close()
            raise UserError(
                f"{path.parent} is in use by process {holder}; wait for it to end, or write to another folder"
            ) from None
        # The holder before may have removed the file between our opening and locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()
