"""Output of the commands, and their reaction to signals."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Advance, Silent

LOG_EVERY_S = 15.0


class ConsoleDisplay(Silent):
    """Display that writes messages and progress to standard error."""

    def log(self, message: str) -> None:
        """Print one line."""
        print(message, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int | None, unit: str, done: int = 0) -> Iterator[Advance]:
        """Show a task with its rate and remaining time: a bar on a terminal, otherwise a line every 15 seconds."""
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
    done, shown = before, ""

    def show(now: float) -> None:
        rate = (done - before) / max(1e-9, now - started)
        line = f"{name}: {done:,}{f' of {total:,}' if total is not None else ''} {unit}, {rate:,.0f}/s"
        if total and rate:
            line += f", {timedelta(seconds=round((total - done) / rate))} left"
        print(line + (f", {shown}" if shown else ""), file=sys.stderr, flush=True)

    def advance(count: int, note: str = "") -> None:
        nonlocal done, last, shown
        done, shown = done + count, note or shown
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            show(now)

    yield advance
    if done > before:
        show(time.monotonic())


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1, least_width: int = 0) -> None:
    """Print a table; the first `names` columns hold names, the others numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, box=None, header_style="bold")
    for number, column in enumerate(table.columns):
        column.no_wrap = number == 0
        column.justify = "left" if number < names else "right"
    for row in rows:
        table.add_row(*row)
    Console(width=max(Console().width, least_width)).print(table)


def drop_standard_output() -> None:
    """Discard buffered output: the reader is gone or blocked, and flushing at exit would fail or block, too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Ctrl-C and a scheduler's SIGTERM end a command with one line that says what is kept.

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def on_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop` on the first signal within the block; a second one ends the process immediately and silently."""

    def handle(number: int, frame: object) -> None:
        for each in heard:
            signal.signal(each, signal.SIG_DFL)
        stop(number)

    # A signal that is ignored stays ignored: shells set that for background jobs.
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == handle:
                signal.signal(number, handler)


@contextmanager
def stopped_by_signals(message: str | Callable[[], str]) -> Iterator[None]:
    """Interrupt the block on a signal, then raise a `UserError` with `message`, which may be computed only then."""
    process = os.getpid()

    def stop(number: int) -> None:
        if os.getpid() != process:
            # In a forked child, the default action applies.
            os.kill(os.getpid(), number)
            return
        # Written immediately: the batch or library call under way may take seconds to end.
        os.write(2, b"stopping; send the signal again to stop immediately\n")
        raise KeyboardInterrupt

    try:
        with on_signals(stop):
            yield
    except KeyboardInterrupt:
        raise UserError(message if isinstance(message, str) else message()) from None
