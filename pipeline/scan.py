"""One pass over a corpus for its plan: how many sentences each record has, and their hashes."""

import multiprocessing
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

import numpy as np

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import sentence_id
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.pipeline.children import cores, deaf_to_ctrl_c

_BLOCK_RECORDS = 8192
# Below this, starting processes takes longer than reading.
_PARALLEL_BYTES = 64 << 20


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
    """Yield all records in the order of the corpus; large corpora of several files are read by all cores."""
    files = range(len(corpus.sources))
    processes = min(len(files), cores())
    if processes == 1 or sum(source.size for source in corpus.sources) < _PARALLEL_BYTES:
        for file in files:
            yield from _scan(corpus, rules, file)
        return
    with deaf_to_ctrl_c():
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
        waiting = deque(pool.submit(_scan_whole, corpus, rules, file) for file in files[: processes + 1])
    try:
        for file in files:
            yield from waiting.popleft().result()
            if file + processes + 1 < len(files):
                # At most one file more than there are processes lies read in memory.
                waiting.append(pool.submit(_scan_whole, corpus, rules, file + processes + 1))
    except BrokenProcessPool as error:
        raise UserError(
            "a process that reads the corpus ended, for want of memory perhaps; parted into more and smaller files it "
            "takes less"
        ) from error
    finally:
        # What Python 3.14 calls terminate_workers: shutdown alone would wait until their files are read.
        for child in list(pool._processes.values()):
            child.terminate()
        pool.shutdown(cancel_futures=True)


def _scan_whole(corpus: Corpus, rules: SentenceRules, file: int) -> list[Block]:
    return list(_scan(corpus, rules, file))


def _scan(corpus: Corpus, rules: SentenceRules, file: int) -> Iterator[Block]:
    records = corpus.file_records(file)
    while block := list(islice(records, _BLOCK_RECORDS)):
        hashes = array("Q")
        sentences = np.zeros(len(block), dtype=np.uint32)
        rejected: Counter[str] = Counter()
        for number, record in enumerate(block):
            if record.text is None:
                rejected[record.reason] += 1
                continue
            before = len(hashes)
            for sentence in split_sentences(record.text, rules):
                if sentence.reason:
                    rejected[sentence.reason] += 1
                else:
                    hashes.append(sentence_id(sentence.text))
            sentences[number] = len(hashes) - before
        yield Block(
            file=file,
            records=np.array([record.position.record for record in block], dtype=np.uint64),
            offsets=np.array([record.position.offset for record in block], dtype=np.uint64),
            sentences=sentences,
            hashes=np.frombuffer(hashes, dtype=np.uint64),
            rejected=rejected,
        )
