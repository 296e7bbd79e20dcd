"""The loop at the heart of stage one: slices come prepared, go through the teacher, and are committed behind it."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_distill.data.corpus import Corpus
from sentence_distill.pipeline.ahead import ReadAhead
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.launched import Launched
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.shards import token_dtype
from sentence_distill.pipeline.slices import SliceText, commit_slice
from sentence_distill.pipeline.teacher import Teacher


@dataclass(frozen=True)
class Job:
    """What the slices of a run have in common, whoever embeds them."""

    corpus: Corpus
    config: EmbedConfig
    out: Path
    fingerprint: dict[str, Any]


@dataclass
class Waits:
    """Seconds that the teacher stood still, in `total` seconds of a run over at least one slice."""

    reading: float = 0.0
    writing: float = 0.0
    total: float = 0.0

    def __str__(self) -> str:
        share = 100 / max(1e-9, self.total)
        reading, writing = self.reading * share, self.writing * share
        return f"the teacher waited {reading:.1f}% of the time for text, {writing:.1f}% for disk"


def embed_slices(
    job: Job,
    teacher: Teacher,
    todo: Sequence[Slice],
    *,
    readers: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Waits:
    """Embed slices and commit their shards.

    Three things go on at once: `readers` processes read and tokenise the next slices, this thread feeds the
    teacher, and a second thread writes the slice before. When it is stopped by an exception, slices whose
    vectors are there are still written.

    Args:
        job: the run.
        teacher: its teacher, loaded.
        todo: what to embed.
        readers: reading processes.
        advance: called with the number of sentences done.
    """
    waits, started = Waits(), time.monotonic()
    ahead = ReadAhead(
        corpus=job.corpus,
        config=job.config,
        tokenizer_json=teacher.tokenizer_json(),
        separator=teacher.separator,
        dtype=token_dtype(teacher.vocabulary_size),
        todo=todo,
        processes=readers,
    )
    # A GPU works on one slice while the vectors of the one before are fetched and written.
    depth = 1 if teacher.device.type == "cuda" else 0
    launched: list[tuple[SliceText, Launched]] = []
    with ahead, ThreadPoolExecutor(1, "writer") as writer:
        committed: Future[None] | None = None
        before = time.monotonic()
        for text in ahead:
            waits.reading += time.monotonic() - before
            assert text.tokens is not None
            advance(text.part.sentences - text.duplicates - len(text.sentences))
            launched.append((text, teacher.launch(text.tokens, job.config.token_budget, advance)))
            if len(launched) > depth:
                committed = _commit(job, writer, *launched.pop(0), committed, waits)
            before = time.monotonic()
        for rest in launched:
            committed = _commit(job, writer, *rest, committed, waits)
        if committed is not None:
            committed.result()
    waits.total = time.monotonic() - started
    return waits


def _commit(
    job: Job,
    writer: ThreadPoolExecutor,
    text: SliceText,
    launched: Launched,
    before: "Future[None] | None",
    waits: Waits,
) -> "Future[None]":
    """Hand a slice to the writer once it is done with the one before, so that at most two wait in memory."""
    vectors = launched.vectors()
    started = time.monotonic()
    if before is not None:
        before.result()
    waits.writing += time.monotonic() - started
    return writer.submit(
        commit_slice,
        text,
        vectors,
        config=job.config,
        out=job.out,
        names=[source.name for source in job.corpus.sources],
        fingerprint=job.fingerprint,
    )
