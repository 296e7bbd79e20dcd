"""Measure the speed of models, one process each."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Examples
from sentence_distill.pipeline.load import Located
from sentence_distill.student.contender import LONGEST_S
from sentence_distill.student.contenders import Contender, Field, gather
from sentence_distill.student.environment import PACKAGES, environment
from sentence_distill.student.models import megabytes
from sentence_distill.student.peers import make_peers, parameters_of
from sentence_distill.student.reference import cut_to_lengths


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

    def __init__(self, results: Sequence[Result], found: Field, threads: int, texts: Path) -> None:
        """Who takes part.

        Args:
            results: what is measured is added.
            found: who fails is skipped there, with the reason, and takes no further part.
            threads: how many each may use.
            texts: file of what they encode.
        """
        self._results = results
        self._found = found
        self._threads = threads
        self._texts = texts
        self._workers: dict[str, Worker] = {}

    def run(self, rounds: int, *, with_pairs: bool) -> None:
        """Start all, let them take `rounds` turns, and `with_pairs` score the pairs once; then end all."""
        plural = "thread" if self._threads == 1 else "threads"
        turns = len(self._results) * (1 + rounds + with_pairs)
        with ExitStack() as stack, progress.task(f"{self._threads} {plural}", turns, "turns") as advance:

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


# A contender's process, seen from the command that times it.

_MODULE = "sentence_distill.student.contender"
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


# What a model costs: sentences a second, latency, start-up, memory and size, beside what a user would pick instead.

_PEERS = ("model2vec", "onnxruntime", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How speed is measured."""

    threads: tuple[int, ...]
    """Numbers of threads, ascending; each contender is started anew for each."""
    rounds: int = 3
    """In each round all contenders take turns; the median counts."""
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128, 512)
    """Sentences of a call, ascending."""


def measure_speed(
    models: Sequence[tuple[str, Located]],
    sentences: Sequence[str],
    *,
    teacher: str | None,
    pairs: Examples | None,
    config: SpeedConfig,
) -> dict[str, Any]:
    """Time models and what else is here, each in a process of its own, all with the same sentences.

    Args:
        models: as the user named them, and what `find_model` found.
        sentences: from which all calls are cut.
        teacher: see `open_teacher`.
        pairs: sentence pairs with human scores; quality stands beside speed then.
        config: threads, rounds, batch sizes.

    Returns:
        What speed.json holds; docs/evaluation.md says what each figure is.
    """
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(temporary)
        found = gather(models, teacher, workdir)
        make_peers(found, sentences)
        texts = _texts(models, sentences, pairs, config, found)
        file = workdir / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        results = _sizes(found)
        for threads in config.threads:
            # Quality does not depend on threads: it is measured once, with the most.
            with_pairs = pairs is not None and threads == config.threads[-1]
            Race(results, found, threads, file).run(config.rounds, with_pairs=with_pairs)
        contenders = {
            result.contender.name: _summary(result, texts, found)
            for result in results
            if result.contender.name not in found.skipped
        }
    return {
        "environment": environment((*PACKAGES, *_PEERS)),
        "sentences": len(sentences),
        "rounds": config.rounds,
        "threads": list(config.threads),
        "sts_pairs": None if pairs is None else len(pairs.labels),
        "contenders": contenders,
        "skipped": found.skipped,
    }


def _sizes(found: Field) -> list[Result]:
    """The contenders with their sizes; one whose files can't be read is skipped."""
    results = []
    for contender in found.contenders:
        try:
            sizes = {"parameters": parameters_of(contender, found), "megabytes": megabytes(contender.folder)}
            results.append(Result(contender, sizes))
        except UserError as error:
            found.skipped[contender.name] = str(error)
    return results


def _texts(
    models: Sequence[tuple[str, Located]],
    sentences: Sequence[str],
    pairs: Examples | None,
    config: SpeedConfig,
    found: Field,
) -> dict[str, Any]:
    """What all contenders encode."""
    from tokenizers import Tokenizer

    texts: dict[str, Any] = {"sentences": list(sentences), "batch_sizes": config.batch_sizes, "by_length": {}}
    name, located = models[0]
    if (tokenizer := next(located.folder.rglob("tokenizer.json"), None)) is None:
        found.skipped["speed by length"] = f"{name} has no tokenizer.json to cut sentences with"
    else:
        try:
            texts["by_length"] = cut_to_lengths(Tokenizer.from_file(str(tokenizer)), sentences)
        # tokenizers raises nothing more precise; the measurement goes on without this.
        except Exception as error:
            found.skipped["speed by length"] = f"{tokenizer} can't be read ({error})"
    if pairs is not None:
        first, second = (list(column) for column in pairs.texts)
        texts["pairs"] = {"first": first, "second": second, "scores": [float(score) for score in pairs.labels]}
    return texts


def _summary(result: Result, texts: dict[str, Any], found: Field) -> dict[str, Any]:
    """A contender's figures; what took too long to measure is listed in `found.skipped`."""
    contender = result.contender
    threads = {}
    for number, rounds in result.rounds.items():
        latency = [milliseconds for one in rounds for milliseconds in one["latency_ms"]]
        threads[str(number)] = {
            **{by: _medians([one[by] for one in rounds]) for by in ("by_batch", "by_length")},
            "latency_ms": {"p50": float(np.percentile(latency, 50)), "p99": float(np.percentile(latency, 99))},
        }
        for by, what, wanted in (
            ("by_batch", "sentences a call", texts["batch_sizes"]),
            ("by_length", "tokens a sentence", texts["by_length"]),
        ):
            if missing := [str(key) for key in wanted if str(key) not in threads[str(number)][by]]:
                found.skipped[f"{contender.name}, threads {number}: {', '.join(missing)} {what}"] = (
                    f"one call would take over {LONGEST_S:.0f} s"
                )
    return {
        "model": contender.model,
        "runner": contender.runner,
        "precision": contender.precision,
        "threads": threads,
        **result.facts,
    }


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each rate; one that a round left out as too slow is left out."""
    kept = [key for key in rounds[0] if all(key in one for one in rounds)]
    return {key: statistics.median(one[key] for one in rounds) for key in kept}
