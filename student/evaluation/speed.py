"""What a model costs: sentences a second, latency, start-up, memory and size, beside what a user would pick instead."""

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Examples
from sentence_distill.data.progress import Progress
from sentence_distill.pipeline.locate import Located
from sentence_distill.student.environment import PACKAGES, environment
from sentence_distill.student.evaluation.contender import LONGEST_S
from sentence_distill.student.evaluation.contenders import Field, gather
from sentence_distill.student.evaluation.models import megabytes
from sentence_distill.student.evaluation.peers import make_peers, parameters_of
from sentence_distill.student.evaluation.race import Race, Result
from sentence_distill.student.evaluation.texts import cut_to_lengths

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
    progress: Progress,
) -> dict[str, Any]:
    """Time models and what else is here, each in a process of its own, all with the same sentences.

    Args:
        models: as the user named them, and what `find_model` found.
        sentences: from which all calls are cut.
        teacher: see `open_teacher`.
        pairs: sentence pairs with human scores; quality stands beside speed then.
        config: threads, rounds, batch sizes.
        progress: where to report.

    Returns:
        What speed.json holds; docs/evaluation.md says what each figure is.
    """
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(temporary)
        found = gather(models, teacher, workdir)
        make_peers(found, sentences, progress)
        texts = _texts(models, sentences, pairs, config, found)
        file = workdir / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        results = _sizes(found)
        for threads in config.threads:
            # Quality does not depend on threads: it is measured once, with the most.
            with_pairs = pairs is not None and threads == config.threads[-1]
            Race(results, found, threads, file, progress).run(config.rounds, with_pairs=with_pairs)
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
