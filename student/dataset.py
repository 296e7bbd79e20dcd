"""The stream of training batches, read from memory-mapped shards.

A batch holds sentences of exactly one length. Nothing is padded or masked, and the LSTM runs on dense tensors instead
of packed sequences, which are slow. The last batch of each length is smaller than the others; its loss is divided by
the full batch size (see `step.Stepper`), so that every sentence weighs the same.

The order of the batches is a pure function of seed, epoch, shards and batch size. A resumed run computes it again and
skips the batches that were done, so a checkpoint needs only their number; and every process of a distributed run knows
the same order without communication.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import counted
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.manifest import ShardFolder, require_vectors
from sentence_distill.pipeline.records import Fingerprint
from sentence_distill.pipeline.shards import Shard

WINDOW_ROWS = 1 << 20
# Rows read together. The rows of a single batch are scattered over all shards of a window, one or two in each; for
# several batches at once, each shard is read in ascending order.
_READ_ROWS = 2048
_HELD_OUT_ROWS = 20_000

# The order of training batches. Shards are shuffled and grouped into windows, then rows are shuffled within a window: a
# shuffle of all rows would have to read them from random places on disk. With windows of a million rows, neighboring
# batches are as unrelated as in a full shuffle (measured by benchmarks/order_statistics.py).


def shard_windows(rows: Sequence[int], window_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle the shards, which have `rows` rows, and group them into windows of at least `window_rows` rows.

    Returns the numbers of the shards in each window; the last window may be smaller.
    """
    windows: list[list[int]] = [[]]
    filled = 0
    for shard in np.random.default_rng([seed, epoch]).permutation(len(rows)):
        if filled >= window_rows:
            windows.append([])
            filled = 0
        windows[-1].append(int(shard))
        filled += rows[shard]
    return windows


def window_batches(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Divide the rows of a window, with int[n] `lengths`, into batches of one length, int64[b], in random order.

    Each row is in exactly one batch; the last batch of each length may be smaller than the others.
    """
    # A stable sort of shuffled rows by length keeps rows of the same length in random order.
    shuffled = rng.permutation(len(lengths))
    order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    cuts = np.flatnonzero(np.diff(lengths[order])) + 1
    batches = [
        group[first : first + batch_size]
        for group in np.split(order, cuts)
        for first in range(0, len(group), batch_size)
    ]
    # Batches are shuffled, too: in ascending order of length, training would drift from short to long sentences.
    return [batches[number] for number in rng.permutation(len(batches))]


def count_batches(rows_of_length: np.ndarray, batch_size: int) -> int:
    """Count the batches that `window_batches` makes, from int[longest + 1], the number of rows of each length."""
    return int((-(-rows_of_length // batch_size)).sum())


class LostShardError(UserError):
    """A shard that has disappeared, or can no longer be read, during training."""


@dataclass(frozen=True)
class Batch:
    """Sentences of one length, with the teacher's vectors."""

    input_ids: torch.Tensor
    """int64[b, length]."""
    targets: torch.Tensor
    """float16 or float32[b, dim], in the dtype of the shards."""


class _Window:
    """The training rows of several shards, numbered consecutively.

    Their tokens are copied, about 50 MB per million sentences; their embeddings stay in the memory-mapped files.
    """

    def __init__(self, shards: Sequence[Shard], kept: Sequence[np.ndarray]) -> None:
        """Number the rows `kept`, ascending, of each shard."""
        self._embeddings = [shard.embeddings for shard in shards]
        self._starts = np.cumsum([0, *(len(rows) for rows in kept)])
        self._rows = np.concatenate(kept)
        self._tokens = Tokens.concatenated([shard.tokens.take(rows) for shard, rows in zip(shards, kept, strict=True)])
        self.lengths = self._tokens.lengths

    def take(self, batches: Sequence[np.ndarray], columns: slice | np.ndarray) -> list[Batch]:
        """Read several batches at once, in the order of the files: shard by shard, and ascending within a shard."""
        rows = np.concatenate(batches)
        order = np.argsort(rows)
        ascending = rows[order]
        places = self._rows[ascending]
        cuts = np.searchsorted(ascending, self._starts)
        buffer = np.empty((len(rows), self._embeddings[0].shape[1]), dtype=self._embeddings[0].dtype)
        for embeddings, first, end in zip(self._embeddings, cuts[:-1], cuts[1:], strict=True):
            # The default mode, "raise", would buffer the output in a copy.
            np.take(embeddings, places[first:end], axis=0, out=buffer[first:end], mode="clip")
        # The inverse permutation of `order`: where each row of the batches is in the buffer.
        where = np.empty_like(order)
        where[order] = np.arange(len(order))
        read = []
        for batch, part in zip(batches, np.split(where, np.cumsum([len(each) for each in batches])[:-1]), strict=True):
            input_ids = torch.from_numpy(self._tokens.rectangle(batch, int(self.lengths[batch[0]])))
            read.append(Batch(input_ids, torch.from_numpy(np.take(buffer, part, axis=0))[:, columns]))
        return read


class ShardStream:
    """A complete folder of shards, split by sentence id into training rows and held-out rows.

    Ids are hashes, so a range of them is a random sample: rows with ids below the share `held_out` are held out, and
    `train_fraction` of the others, those with the lowest ids, are trained on. With the same shares, a sentence is on
    the same side of the split in every corpus and run. The vectors of the teacher's `layers` are read, by default all.

    `weights` has the number of times that an epoch reads the rows of each corpus, by name; the default is 1.
    """

    def __init__(
        self,
        folder: Path,
        *,
        held_out: float,
        layers: Sequence[int] | None = None,
        train_fraction: float = 1.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.manifest = require_vectors(folder)
        self.fingerprint = self.manifest.fingerprint
        self._columns = _columns(self.fingerprint, layers)
        self.corpora = self.fingerprint.corpora or [folder.name]
        """Names of the corpora, in the order of their numbers."""
        self._weights = _corpus_weights(folder, self.fingerprint.corpora, weights or {})
        first = int(held_out * 2**64)
        # Computed with integers, because a float lacks the precision for 64-bit ids.
        rest = round(train_fraction * 2**32) * (2**64 - 1 - first) >> 32
        self._first, self._last = np.uint64(first), np.uint64(first + rest)
        self._paths = [folder / entry.shard for entry in self.manifest.shards]
        self._rows = [entry.rows for entry in self.manifest.shards]
        # The checksum of each shard is compared on its first use.
        self._shards = ShardFolder(folder, self.manifest)

    def _split(self, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the training rows, repeated as often as an epoch reads them, and the held-out rows."""
        held_out = shard.ids < self._first
        rows = np.flatnonzero(~held_out & (shard.ids <= self._last))
        if self._weights is not None:
            # A weight of 2.3 reads every row twice, and 30% of the rows a third time. These are chosen by the low bits
            # of their ids, which are independent of the high bits that decide the split.
            share = (shard.ids[rows] & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2**32
            rows = np.repeat(rows, np.floor(self._weights[shard.corpora[rows]] + share).astype(np.int64))
        return rows, np.flatnonzero(held_out)

    def split(self) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
        """Yield the path of each shard, with the numbers of its training rows and of its held-out rows."""
        for number, path in enumerate(self._paths):
            yield path, *self._split(self._shards.open(number))

    @cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts of training rows: int64[shards, longest + 1] by shard and length, and int64[corpora] by corpus."""
        lengths, corpora = [], np.zeros(len(self.corpora), dtype=np.int64)
        for number in range(len(self._paths)):
            shard = self._shards.open(number)
            rows = self._split(shard)[0]
            lengths.append(np.bincount(shard.tokens.lengths[rows]))
            corpora += np.bincount(shard.corpora[rows], minlength=len(corpora))
        longest = max(map(len, lengths))
        return np.stack([np.pad(count, (0, longest - len(count))) for count in lengths]), corpora

    @property
    def train_rows(self) -> int:
        """Number of rows per epoch."""
        return int(self._counts[1].sum())

    def rows_of_corpora(self) -> dict[str, int]:
        """Count the rows of each corpus per epoch, by name."""
        return dict(zip(self.corpora, self._counts[1].tolist(), strict=True))

    def steps(self, batch_size: int, seed: int, epoch: int) -> int:
        """Count the batches of an epoch."""
        windows = shard_windows(self._rows, WINDOW_ROWS, seed, epoch)
        return sum(self._count(window, batch_size) for window in windows)

    def _count(self, window: list[int], batch_size: int) -> int:
        return count_batches(self._counts[0][window].sum(axis=0), batch_size)

    def batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch except the first `skip`, which are not read; a thread reads ahead."""
        reads = self._reads(batch_size, seed, epoch, skip)
        with ThreadPoolExecutor(1, "shards") as thread:
            upcoming = thread.submit(next, reads, None)
            while (read := upcoming.result()) is not None:
                upcoming = thread.submit(next, reads, None)
                yield from read

    def _reads(self, batch_size: int, seed: int, epoch: int, skip: int) -> Iterator[list[Batch]]:
        windows = shard_windows(self._rows, WINDOW_ROWS, seed, epoch)
        for number, numbers in enumerate(windows):
            count = self._count(numbers, batch_size)
            if skip >= count:
                skip -= count
                continue
            # Free the previous window first: if shards are compressed, its embeddings are in memory.
            window = order = None
            # Shards are mapped only for the duration of their window, so that memory does not grow with their number.
            shards = [_reopen(self._paths[shard]) for shard in numbers]
            window = _Window(shards, [self._split(shard)[0] for shard in shards])
            del shards
            # Let the system read the files of the next window ahead, sequentially; row by row would be slow on a disk.
            for later in windows[number + 1] if number + 1 < len(windows) and hasattr(os, "posix_fadvise") else ():
                # A missing file is an error later, when it is opened.
                with suppress(OSError), self._paths[later].open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            order = window_batches(window.lengths, batch_size, np.random.default_rng([seed, epoch, number]))[skip:]
            skip = 0
            together = max(1, _READ_ROWS // batch_size)
            for first in range(0, len(order), together):
                yield window.take(order[first : first + together], self._columns)

    @cached_property
    def _held_out_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The held-out rows with the lowest ids, at most 20,000, ascending: int64[n] shard numbers and row numbers.

        Ids are hashes, so these rows are a random sample, and so is each prefix of them, whatever the order of the
        corpus.
        """
        rows, ids = [], []
        for number in range(len(self._paths)):
            shard = self._shards.open(number)
            rows.append(self._split(shard)[1])
            ids.append(np.array(shard.ids[rows[-1]]))
        lowest = np.argsort(np.concatenate(ids), kind="stable")[:_HELD_OUT_ROWS]
        shards = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
        return shards[lowest], np.concatenate(rows)[lowest]

    def _by_shard(self, count: int) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
        """Return the first `count` held-out rows by shard, in file order, and int64[n], the place of each in there."""
        shards, rows = (each[:count] for each in self._held_out_rows)
        order = np.lexsort((rows, shards))
        parts = [(int(number), np.sort(rows[shards == number])) for number in np.unique(shards)]
        return parts, np.argsort(order)

    def held_out(self) -> tuple[Tokens, torch.Tensor]:
        """Read the held-out rows with the lowest ids, ascending: tokens and float32[n, dim], n at most 20,000."""
        places, order = self._by_shard(_HELD_OUT_ROWS)
        # A rank correlation needs at least two similarities, hence three rows.
        if len(order) < 3:
            raise UserError(f"only {counted(len(order), 'row')} held out; use a larger corpus, or raise --held-out")
        tokens, targets = [], []
        for number, rows in places:
            shard = self._shards.open(number)
            tokens.append(shard.tokens.take(rows))
            targets.append(np.array(shard.embeddings[rows][:, self._columns], dtype=np.float32))
        return Tokens.concatenated(tokens).take(order), torch.from_numpy(np.concatenate(targets)[order])

    def held_out_corpora(self) -> np.ndarray:
        """Return the index of the corpus of each row of `held_out`, uint16[n]."""
        places, order = self._by_shard(_HELD_OUT_ROWS)
        return np.concatenate([self._shards.open(number).corpora[rows] for number, rows in places])[order]

    def held_out_texts(self, count: int = _HELD_OUT_ROWS) -> list[str] | None:
        """Read the sentences of the first `count` rows of `held_out`; None if the shards have no text."""
        if not self.fingerprint.keep_text:
            return None
        places, order = self._by_shard(count)
        texts = [text for number, rows in places for text in self._shards.texts(number, rows)]
        return [texts[place] for place in order]


def _reopen(path: Path) -> Shard:
    try:
        return Shard.open(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise LostShardError(f"shard {path} can no longer be read ({error})") from error


def _corpus_weights(folder: Path, corpora: Sequence[str] | None, weights: Mapping[str, float]) -> np.ndarray | None:
    """Return the weight of each corpus, float64[corpora]; None if all are 1."""
    if not weights:
        return None
    if corpora is None:
        raise UserError(
            f"{folder} has shard format 1, which does not tell corpora apart; run sd embed again to use --corpus"
        )
    if unknown := weights.keys() - set(corpora):
        raise UserError(f"--corpus {min(unknown)}: the shards hold {', '.join(corpora)}")
    return np.array([weights.get(name, 1.0) for name in corpora])


def _columns(fingerprint: Fingerprint, layers: Sequence[int] | None) -> slice | np.ndarray:
    """Return the columns of a shard's embeddings that hold the vectors of these layers."""
    known, width = fingerprint.layers, fingerprint.layer_dim
    if layers is None:
        return slice(None)
    if len(set(layers)) < len(layers):
        raise UserError(f"--target-layers {','.join(map(str, layers))} names a layer twice")
    if missing := [layer for layer in layers if layer not in known]:
        raise UserError(
            f"--target-layers: the shards hold layers {', '.join(map(str, known))} of the teacher, not {missing[0]}; "
            "choose the layers to write with sd embed --layers"
        )
    return np.concatenate([np.arange(width) + width * known.index(layer) for layer in layers])
