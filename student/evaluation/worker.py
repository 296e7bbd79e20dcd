"""A contender's process, seen from the command that times it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.student.evaluation.contenders import Contender

_MODULE = "sentence_distill.student.evaluation.contender"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class Worker:
    """A process that runs one contender and idles while it is not asked; a context manager, which ends it.

    Attributes:
        facts: "dim", and "startup_seconds" from the start of `python` to the first vector.
    """

    def __init__(self, contender: Contender, threads: int, texts: Path) -> None:
        """Start the process and wait for its first vector.

        Args:
            contender: what to run.
            threads: how many it may use.
            texts: JSON file of what it will encode.

        Raises:
            UserError: the model could not be loaded.
        """
        spec = {**contender.spec(), "threads": threads, "texts": str(texts)}
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **dict.fromkeys(_THREADS, str(threads))}
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise
        self.facts["startup_seconds"] = time.perf_counter() - started

    def ask(self, request: int | str) -> Any:
        """Have it measure, see `contender.main`.

        Raises:
            UserError: the process is gone; with the last thing that it said.
        """
        assert self._process.stdin is not None
        # Of a process that is gone, what it said is read below.
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        code = self._process.wait()
        if code < 0:
            raise UserError(f"its process was ended by signal {-code}; is memory short?")
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or [f"its process ended with code {code}"]
        raise UserError(said[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: "))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
