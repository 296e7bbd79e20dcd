"""One pass over a corpus for its plan: how many sentences each record has, and their hashes."""

import multiprocessing
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import sentence_id
from sentence_distill.data.records import Record
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.pipeline.children import cores, deaf_to_ctrl_c

_BLOCK_RECORDS = 8192
# Below this, starting processes takes longer than splitting.
_PARALLEL_BYTES = 32 << 20


@dataclass(frozen=True)
class Block:
    """Records of one file that follow each other.

    Args:
        file: number of the file.
        records: uint64[r], number of each record in it.
        offsets: uint64[r], where each record begins, see `Position`.
        sentences: uint32[r], how many sentences of each pass the rules.
        hashes: uint64[sum of sentences], their ids.
        rejected: how many records and sentences do not pass, by reason.
    """

    file: int
    records: np.ndarray
    offsets: np.ndarray
    sentences: np.ndarray
    hashes: np.ndarray
    rejected: Counter[str]


def scan_corpus(corpus: Corpus, rules: SentenceRules) -> Iterator[Block]:
    """Yield all records in the order of the corpus; the sentences of a large one are split by all cores."""
    blocks = _blocks(corpus)
    processes = cores()
    if processes == 1 or sum(source.size for source in corpus.sources) < _PARALLEL_BYTES:
        for records in blocks:
            yield _block(records, *_split(_texts(records), rules))
        return
    with deaf_to_ctrl_c():
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
        waiting: deque[tuple[list[Record], Future[Any]]] = deque()

        def submit(count: int) -> None:
            waiting.extend((records, pool.submit(_split, _texts(records), rules)) for records in islice(blocks, count))

        # The pool starts a process for each of its first tasks. Each finds a block when it is done with one, and few
        # lie read in memory.
        submit(2 * processes)
    try:
        while waiting:
            records, split = waiting.popleft()
            submit(1)
            yield _block(records, *split.result())
    except BrokenProcessPool as error:
        raise UserError(
            "a process that splits the corpus ended, for want of memory perhaps; free some, and run the same command "
            "again"
        ) from error
    finally:
        # What Python 3.14 calls terminate_workers: shutdown alone would wait until their blocks are split.
        for child in list(pool._processes.values()):
            child.terminate()
        pool.shutdown(cancel_futures=True)


def _blocks(corpus: Corpus) -> Iterator[list[Record]]:
    """Runs of records of one file."""
    for _, records in groupby(corpus.records(), key=lambda record: record.position.file):
        while block := list(islice(records, _BLOCK_RECORDS)):
            yield block


def _texts(records: Sequence[Record]) -> list[str | None]:
    return [record.text for record in records]


def _split(texts: Sequence[str | None], rules: SentenceRules) -> tuple[list[int], bytes, Counter[str]]:
    """For each text how many of its sentences pass; the hashes of all of them; and why the others do not."""
    hashes = array("Q")
    counts = []
    rejected: Counter[str] = Counter()
    for text in texts:
        before = len(hashes)
        for sentence in split_sentences(text, rules) if text is not None else ():
            if sentence.reason:
                rejected[sentence.reason] += 1
            else:
                hashes.append(sentence_id(sentence.text))
        counts.append(len(hashes) - before)
    return counts, hashes.tobytes(), rejected


def _block(records: Sequence[Record], counts: list[int], hashes: bytes, rejected: Counter[str]) -> Block:
    unreadable = Counter(record.reason for record in records if record.text is None)
    unreadable["heading"] += sum(len(record.headings) for record in records)
    return Block(
        file=records[0].position.file,
        records=np.array([record.position.record for record in records], dtype=np.uint64),
        offsets=np.array([record.position.offset for record in records], dtype=np.uint64),
        sentences=np.array(counts, dtype=np.uint32),
        hashes=np.frombuffer(hashes, dtype=np.uint64),
        rejected=rejected + unreadable,
    )
