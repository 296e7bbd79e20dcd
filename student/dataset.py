"""The stream of training batches, read from memory-mapped shards."""

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
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.manifest import ShardFolder, require_vectors
from sentence_distill.pipeline.records import Fingerprint
from sentence_distill.pipeline.shards import Shard

WINDOW_ROWS = 1 << 20
# So many are read in one go: over all shards of a window, a batch alone would touch a row or two of each.
_READ_ROWS = 2048
_HELD_OUT_ROWS = 20_000

# The order of training batches: a pure function of seed, epoch, shards and batch size.


def shard_windows(rows: Sequence[int], window_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle the shards, of `rows` rows each, and group their numbers into windows of at least `window_rows` rows.

    Sentences are shuffled over a window; the last one may be smaller.
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
    """Cut a window's rows, of int[n] `lengths`, into batches of one length each, int64[b], in random order.

    Each row is in exactly one; the last batch of each length may be smaller than the others.
    """
    shuffled = rng.permutation(len(lengths))
    order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    cuts = np.flatnonzero(np.diff(lengths[order])) + 1
    batches = [
        group[first : first + batch_size]
        for group in np.split(order, cuts)
        for first in range(0, len(group), batch_size)
    ]
    return [batches[number] for number in rng.permutation(len(batches))]


def count_batches(rows_of_length: np.ndarray, batch_size: int) -> int:
    """Count the batches that `window_batches` makes of int[longest + 1] rows of each length."""
    return int((-(-rows_of_length // batch_size)).sum())


class LostShardError(UserError):
    """A shard that was there when training began is not, or can no longer be read."""


@dataclass(frozen=True)
class Batch:
    """Sentences of one length with their teacher's vectors."""

    input_ids: torch.Tensor
    """int64[b, length]."""
    targets: torch.Tensor
    """float16 or float32[b, dim], as the shards hold them."""


class _Window:
    """The rows of some shards that are trained on, numbered through.

    Their tokens are copied, 50 MB a million sentences; their embeddings stay where the files are mapped.
    """

    def __init__(self, shards: Sequence[Shard], kept: Sequence[np.ndarray]) -> None:
        """Number the rows that are `kept` of each shard, ascending."""
        self._embeddings = [shard.embeddings for shard in shards]
        self._starts = np.cumsum([0, *(len(rows) for rows in kept)])
        self._rows = np.concatenate(kept)
        self._tokens = Tokens.concatenated([shard.tokens.take(rows) for shard, rows in zip(shards, kept, strict=True)])
        self.lengths = self._tokens.lengths

    def take(self, batches: Sequence[np.ndarray], columns: slice | np.ndarray) -> list[Batch]:
        """Read several batches at once, shard by shard and within each from its beginning to its end."""
        rows = np.concatenate(batches)
        order = np.argsort(rows)
        ascending = rows[order]
        places = self._rows[ascending]
        cuts = np.searchsorted(ascending, self._starts)
        buffer = np.empty((len(rows), self._embeddings[0].shape[1]), dtype=self._embeddings[0].dtype)
        for embeddings, first, end in zip(self._embeddings, cuts[:-1], cuts[1:], strict=True):
            # Without a mode of its own, take fills a copy of its output first.
            np.take(embeddings, places[first:end], axis=0, out=buffer[first:end], mode="clip")
        where = np.empty_like(order)
        where[order] = np.arange(len(order))
        read = []
        for batch, part in zip(batches, np.split(where, np.cumsum([len(each) for each in batches])[:-1]), strict=True):
            input_ids = torch.from_numpy(self._tokens.rectangle(batch, int(self.lengths[batch[0]])))
            read.append(Batch(input_ids, torch.from_numpy(np.take(buffer, part, axis=0))[:, columns]))
        return read


class ShardStream:
    """A complete folder of shards, split by sentence id into rows to train on and rows held out.

    Ids are hashes, so a range of them is a random share: those below the share `held_out` are held out, and of the
    others the lowest `train_fraction` is trained on. `layers` of the teacher are read, by default all.

    `weights` say how many times an epoch reads the rows of each corpus, by its name; 1 for those not named.
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
        # In whole numbers: a float has no room for the last bits of an id.
        rest = round(train_fraction * 2**32) * (2**64 - 1 - first) >> 32
        self._first, self._last = np.uint64(first), np.uint64(first + rest)
        self._paths = [folder / entry.shard for entry in self.manifest.shards]
        self._rows = [entry.rows for entry in self.manifest.shards]
        # Each shard is checked when it is first used.
        self._shards = ShardFolder(folder, self.manifest)

    def _split(self, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the rows to train on, each as often as an epoch reads it, and of those held out."""
        held_out = shard.ids < self._first
        rows = np.flatnonzero(~held_out & (shard.ids <= self._last))
        if self._weights is not None:
            # What a weight has after the point is a share of the rows, by the bits of the id that no split goes by.
            share = (shard.ids[rows] & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2**32
            rows = np.repeat(rows, np.floor(self._weights[shard.corpora[rows]] + share).astype(np.int64))
        return rows, np.flatnonzero(held_out)

    def split(self) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
        """Yield each shard's path, with the numbers of its rows to train on and of those held out."""
        for number, path in enumerate(self._paths):
            yield path, *self._split(self._shards.open(number))

    @cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """How many rows to train on there are: of each length in each shard, int64[shards, longest + 1]; by corpus."""
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
        """Number of rows that an epoch reads."""
        return int(self._counts[1].sum())

    def rows_of_corpora(self) -> dict[str, int]:
        """Count the rows that an epoch reads of each corpus, by its name."""
        return dict(zip(self.corpora, self._counts[1].tolist(), strict=True))

    def steps(self, batch_size: int, seed: int, epoch: int) -> int:
        """Count the batches of an epoch."""
        windows = shard_windows(self._rows, WINDOW_ROWS, seed, epoch)
        return sum(self._count(window, batch_size) for window in windows)

    def _count(self, window: list[int], batch_size: int) -> int:
        return count_batches(self._counts[0][window].sum(axis=0), batch_size)

    def batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches but the first `skip`, of which no row is read; a thread reads ahead."""
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
            # Those of compressed shards are in memory; two windows need not be.
            window = order = None
            # The shards of a window are mapped only while it lasts, so that memory does not grow with them.
            shards = [_reopen(self._paths[shard]) for shard in numbers]
            window = _Window(shards, [self._split(shard)[0] for shard in shards])
            del shards
            # The system is told that the next window's files follow, so that it reads them in whole pieces.
            for later in windows[number + 1] if number + 1 < len(windows) and hasattr(os, "posix_fadvise") else ():
                # A file that is gone shows when it is opened.
                with suppress(OSError), self._paths[later].open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            order = window_batches(window.lengths, batch_size, np.random.default_rng([seed, epoch, number]))[skip:]
            skip = 0
            together = max(1, _READ_ROWS // batch_size)
            for first in range(0, len(order), together):
                yield window.take(order[first : first + together], self._columns)

    @cached_property
    def _held_out_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The held-out rows with the lowest ids, ascending, at most 20,000: int64[n] numbers of shards, and of rows.

        Ids are hashes, so these are a random sample, and so are the first rows of it; the order of the corpus plays no
        part.
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
        """Return the first `count` held-out rows as they lie, by shard, and where each of them has gone, int64[n]."""
        shards, rows = (each[:count] for each in self._held_out_rows)
        order = np.lexsort((rows, shards))
        parts = [(int(number), np.sort(rows[shards == number])) for number in np.unique(shards)]
        return parts, np.argsort(order)

    def held_out(self) -> tuple[Tokens, torch.Tensor]:
        """Read the held-out rows with the lowest ids, ascending: tokens and float32[n, dim], n at most 20,000."""
        places, order = self._by_shard(_HELD_OUT_ROWS)
        # Three rows are the fewest among which ranks of similarities can agree or not.
        if len(order) < 3:
            raise UserError(f"only {len(order)} rows are held out; take a larger corpus, or raise --held-out")
        tokens, targets = [], []
        for number, rows in places:
            shard = self._shards.open(number)
            tokens.append(shard.tokens.take(rows))
            targets.append(np.array(shard.embeddings[rows][:, self._columns], dtype=np.float32))
        return Tokens.concatenated(tokens).take(order), torch.from_numpy(np.concatenate(targets)[order])

    def held_out_corpora(self) -> np.ndarray:
        """Return the number of the corpus of each row of `held_out`, uint16[n]."""
        places, order = self._by_shard(_HELD_OUT_ROWS)
        return np.concatenate([self._shards.open(number).corpora[rows] for number, rows in places])[order]

    def held_out_texts(self, count: int = _HELD_OUT_ROWS) -> list[str] | None:
        """Read the sentences of the first `count` rows of `held_out`; None if the shards keep no text."""
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
            f"{folder} has shard format 1, which does not tell corpora apart; embed them again for --corpus"
        )
    if unknown := weights.keys() - set(corpora):
        raise UserError(f"--corpus {min(unknown)}: the shards hold {', '.join(corpora)}")
    return np.array([weights.get(name, 1.0) for name in corpora])


def _columns(fingerprint: Fingerprint, layers: Sequence[int] | None) -> slice | np.ndarray:
    """Return where the vectors of these layers stand among all columns of a shard's embeddings."""
    known, width = fingerprint.layers, fingerprint.layer_dim
    if layers is None:
        return slice(None)
    if len(set(layers)) < len(layers):
        raise UserError(f"--target-layers {','.join(map(str, layers))} names a layer twice")
    if missing := [layer for layer in layers if layer not in known]:
        raise UserError(
            f"--target-layers: the shards hold layers {', '.join(map(str, known))} of the teacher, not {missing[0]}; "
            "sd embed --layers says which to write"
        )
    return np.concatenate([np.arange(width) + width * known.index(layer) for layer in layers])
