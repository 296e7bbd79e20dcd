"""What the commands print: a progress bar on a terminal, plain log lines elsewhere, one-line errors."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

LOG_EVERY_S = 15.0


class ConsoleProgress:
    """Shows the progress of tasks on standard error (see `data.progress.Progress`)."""

    def log(self, message: str) -> None:
        """Print one line."""
        print(message, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Show a task, with its rate and the time left."""
        with (_bar if sys.stderr.isatty() else _lines)(name, total, unit) as advance:
            yield advance


@contextmanager
def _bar(name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}" + (f" of {total:,}" if total is not None else "") + f" {unit}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total, rate="")

        def advance(count: int) -> None:
            progress.advance(task, count)
            done = progress.tasks[0].completed
            progress.update(task, rate=f"{done / max(1e-9, time.monotonic() - started):,.0f}/s")

        yield advance


@contextmanager
def _lines(name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    started = last = time.monotonic()
    done = 0

    def show(now: float) -> None:
        rate = done / max(1e-9, now - started)
        line = f"{name}: {done:,}{f' of {total:,}' if total is not None else ''} {unit}, {rate:,.0f}/s"
        if total and rate:
            line += f", {timedelta(seconds=round((total - done) / rate))} left"
        print(line, file=sys.stderr, flush=True)

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            show(now)

    yield advance
    if done:
        show(time.monotonic())
