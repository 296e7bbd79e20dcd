"""Contenders that take turns, so that a slow minute of the machine meets them all."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Progress
from sentence_distill.student.evaluation.contenders import Contender, Field
from sentence_distill.student.evaluation.worker import Worker


@dataclass
class Result:
    """What is known of one contender.

    Args:
        contender: who it is.
        facts: "megabytes", "parameters", "dim", "startup_seconds", "peak_megabytes"; "sts_spearman" where asked for.
        rounds: by number of threads, what `contender.one_round` gave each time.
    """

    contender: Contender
    facts: dict[str, Any]
    rounds: dict[int, list[dict[str, Any]]] = field(default_factory=dict)


class Race:
    """All contenders with one number of threads: their processes live at once, and idle while it is not their turn."""

    def __init__(self, results: Sequence[Result], found: Field, threads: int, texts: Path, progress: Progress) -> None:
        """Who takes part.

        Args:
            results: what is measured is added.
            found: who fails is skipped there, with the reason, and takes no further part.
            threads: how many each may use.
            texts: file of what they encode.
            progress: where to report.
        """
        self._results = results
        self._found = found
        self._threads = threads
        self._texts = texts
        self._progress = progress
        self._workers: dict[str, Worker] = {}

    def run(self, rounds: int, *, with_pairs: bool) -> None:
        """Start all, let them take `rounds` turns, and `with_pairs` score the pairs once; then end all."""
        plural = "thread" if self._threads == 1 else "threads"
        turns = len(self._results) * (1 + rounds + with_pairs)
        with ExitStack() as stack, self._progress.task(f"{self._threads} {plural}", turns, "turns") as advance:

            def each(turn: Callable[[Result], None]) -> None:
                for result in self._results:
                    self._take(turn, result)
                    advance(1, result.contender.name)

            each(lambda result: self._start(result, stack))
            for number in range(rounds):
                each(lambda result, number=number: self._measure(result, number))  # type: ignore[misc]
            if with_pairs:
                each(self._score)

    def _take(self, turn: Callable[[Result], None], result: Result) -> None:
        if result.contender.name in self._found.skipped:
            return
        try:
            turn(result)
        except UserError as error:
            self._found.skipped[result.contender.name] = str(error)

    def _start(self, result: Result, stack: ExitStack) -> None:
        worker = stack.enter_context(Worker(result.contender, self._threads, self._texts))
        self._workers[result.contender.name] = worker
        result.facts.update(worker.facts)

    def _measure(self, result: Result, number: int) -> None:
        answer = self._workers[result.contender.name].ask(number)
        result.facts["peak_megabytes"] = answer["peak_megabytes"]
        result.rounds.setdefault(self._threads, []).append(answer)

    def _score(self, result: Result) -> None:
        result.facts["sts_spearman"] = self._workers[result.contender.name].ask("spearman")
