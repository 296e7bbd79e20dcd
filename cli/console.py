"""What commands print, and how signals stop them."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Advance

LOG_EVERY_S = 15.0


class ConsoleDisplay:
    """Shows messages and the progress of tasks on standard error."""

    def log(self, message: str) -> None:
        """Print one line."""
        print(message, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int | None, unit: str, done: int = 0) -> Iterator[Advance]:
        """Show a task, with its rate and the time left."""
        with (_bar if sys.stderr.isatty() else _lines)(name, total, unit, done) as advance:
            yield advance


@contextmanager
def _bar(name: str, total: int | None, unit: str, before: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}" + (f" of {total:,}" if total is not None else "") + f" {unit}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total, completed=before, rate="", note="")

        def advance(count: int, note: str = "") -> None:
            progress.advance(task, count)
            done = progress.tasks[0].completed - before
            progress.update(task, rate=f"{done / max(1e-9, time.monotonic() - started):,.0f}/s")
            if note:
                progress.update(task, note=note)

        yield advance


@contextmanager
def _lines(name: str, total: int | None, unit: str, before: int) -> Iterator[Advance]:
    started = last = time.monotonic()
    done = before
    shown = ""

    def show(now: float) -> None:
        rate = (done - before) / max(1e-9, now - started)
        line = f"{name}: {done:,}{f' of {total:,}' if total is not None else ''} {unit}, {rate:,.0f}/s"
        if total and rate:
            line += f", {timedelta(seconds=round((total - done) / rate))} left"
        if shown:
            line += f", {shown}"
        print(line, file=sys.stderr, flush=True)

    def advance(count: int, note: str = "") -> None:
        nonlocal done, last, shown
        done += count
        shown = note or shown
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            show(now)

    yield advance
    if done > before:
        show(time.monotonic())


def drop_standard_output() -> None:
    """Forget what was not yet read of it: who reads it has gone or waits, and the end of the process would wait too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Write a command's figures."""
    from sentence_distill.pipeline.files import write_atomically

    write_atomically(path, (json.dumps(figures, indent=1) + "\n").encode())


# Ctrl-C and a scheduler's SIGTERM, as one line that says what is kept.

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_signals(message: str | Callable[[], str]) -> Iterator[None]:
    """Let both signals interrupt the block, and end it with `message`; a second one ends the process at once.

    Args:
        message: one line, or what makes it when the block has ended.

    Raises:
        UserError: a signal came.
    """
    process = os.getpid()

    def stop(number: int, frame: object) -> None:
        end_at_once_next()
        if os.getpid() != process:
            # A forked child ends as it would without this handler.
            os.kill(os.getpid(), number)
            return
        # Said at once: what is under way, a batch or a library's call, may take seconds to end.
        os.write(2, b"stopping; another signal ends it at once\n")
        raise KeyboardInterrupt

    # One that is ignored, as a shell does for what it runs in the background, stays ignored.
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    except KeyboardInterrupt:
        raise UserError(message if isinstance(message, str) else message()) from None
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == stop:
                signal.signal(number, handler)


def end_at_once_next() -> None:
    """Let the next signal end the process as the system does, without a word."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
