"""The stream of training batches."""

import os
from collections.abc import Iterator, Sequence
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


class Window:
    """The rows of some shards that are trained on, numbered through.

    Their tokens are copied, 50 MB a million sentences; their embeddings stay where the files are mapped.

    Attributes:
        lengths: int64[n], tokens of each row.
    """

    def __init__(self, shards: Sequence[Shard], kept: Sequence[np.ndarray]) -> None:
        """Number the rows.

        Args:
            shards: opened.
            kept: for each shard the rows of it that are trained on, ascending.
        """
        self._embeddings = [shard.embeddings for shard in shards]
        self._starts = np.cumsum([0, *(len(rows) for rows in kept)])
        self._rows = np.concatenate(kept)
        self._tokens = Tokens.concatenated([shard.tokens.take(rows) for shard, rows in zip(shards, kept, strict=True)])
        self.lengths = self._tokens.lengths

    def take(self, batches: Sequence[np.ndarray]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Read several batches at once, shard by shard and within each from its beginning to its end.

        Args:
            batches: for each batch int64[b], rows of one length.

        Returns:
            For each batch its token ids, int64[b, length], and embeddings, float16 or float32[b, dim].
        """
        rows = np.concatenate(batches)
        order = np.argsort(rows)
        ascending = rows[order]
        places = self._rows[ascending]
        cuts = np.searchsorted(ascending, self._starts)
        width = self._embeddings[0].shape[1]
        buffer = np.empty((len(rows), width), dtype=self._embeddings[0].dtype)
        for embeddings, first, end in zip(self._embeddings, cuts[:-1], cuts[1:], strict=True):
            # Without a mode of its own, take fills a copy of its output first.
            np.take(embeddings, places[first:end], axis=0, out=buffer[first:end], mode="clip")
        where = np.empty_like(order)
        where[order] = np.arange(len(order))
        parts = np.split(where, np.cumsum([len(batch) for batch in batches])[:-1])
        return [
            (
                torch.from_numpy(self._tokens.rectangle(batch, int(self.lengths[batch[0]]))),
                torch.from_numpy(np.take(buffer, part, axis=0)),
            )
            for batch, part in zip(batches, parts, strict=True)
        ]


# The order of training batches: a pure function of seed, epoch, shards and batch size.


def shard_windows(rows: Sequence[int], window_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle the shards and group them into windows of at least `window_rows` rows; the last may be smaller.

    Args:
        rows: rows of each shard.
        window_rows: rows over which sentences are shuffled.
        seed: of the run.
        epoch: counted from 0; each has its own order.

    Returns:
        Lists of shard numbers.
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
    """Cut a window's rows into batches of one length each, in random order.

    Args:
        lengths: int[n], tokens of each row.
        batch_size: rows of a batch; the last of each length may be smaller.
        rng: random numbers of this window.

    Returns:
        For each batch int64[b], row numbers in the window; each row is in exactly one.
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
    """Number of batches that `window_batches` makes of a window.

    Args:
        rows_of_length: int[longest + 1], how many rows have each length.
        batch_size: rows of a batch.
    """
    return int((-(-rows_of_length // batch_size)).sum())


# The stream of training batches, read from memory-mapped shards.

WINDOW_ROWS = 1 << 20
# So many are read in one go: over all shards of a window, a batch alone would touch a row or two of each.
_READ_ROWS = 2048
_HELD_OUT_ROWS = 20_000


class LostShardError(UserError):
    """A shard that was there when training began is not, or can no longer be read."""


@dataclass(frozen=True)
class Batch:
    """Sentences of one length with their teacher's vectors.

    Args:
        input_ids: int64[b, length].
        targets: float16 or float32[b, dim], as the shards hold them.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Shares:
    """Which rows are trained on and which are held out; ids are hashes, so a range of them is a random share.

    Args:
        first: the lowest id to train on; those below are held out.
        last: the highest.
    """

    first: np.uint64
    last: np.uint64

    @classmethod
    def of(cls, held_out: float, train_fraction: float) -> "Shares":
        """The ranges of two shares, the second of what the first leaves."""
        first = int(held_out * 2**64)
        # In whole numbers: a float has no room for the last bits of an id.
        rest = round(train_fraction * 2**32) * (2**64 - 1 - first) >> 32
        return cls(np.uint64(first), np.uint64(first + rest))

    def split(self, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers to train on and held out."""
        held_out = shard.ids < self.first
        return np.flatnonzero(~held_out & (shard.ids <= self.last)), np.flatnonzero(held_out)


class ShardStream:
    """A folder of shards, split by sentence id into rows to train on and rows held out.

    Attributes:
        manifest: the folder's manifest.
    """

    def __init__(
        self, folder: Path, *, held_out: float, layers: Sequence[int] | None = None, train_fraction: float = 1.0
    ) -> None:
        """Check and map a folder.

        Args:
            folder: a complete folder of shards.
            held_out: share of the rows that is held out.
            layers: the teacher's layers to read, as the manifest numbers them; None is all in the shards.
            train_fraction: share of the other rows that is trained on; the rest is not read.

        Raises:
            UserError: the folder is not complete, a shard is missing or damaged, which is named, or the shards lack
                a layer.
        """
        self.manifest = require_vectors(folder)
        self._columns = _columns(self.fingerprint, layers)
        self._shares = Shares.of(held_out, train_fraction)
        self._paths = [folder / entry.shard for entry in self.manifest.shards]
        self._rows = [entry.rows for entry in self.manifest.shards]
        # Each shard is checked when it is first used.
        self._shards = ShardFolder(folder, self.manifest)

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the run that made the shards."""
        return self.manifest.fingerprint

    @cached_property
    def _rows_of_length(self) -> np.ndarray:
        """int64[shards, longest + 1]: how many rows to train on each shard has of each length."""
        counts = []
        for number in range(len(self._paths)):
            shard = self._shards.open(number)
            counts.append(np.bincount(shard.tokens.lengths[self._shares.split(shard)[0]]))
        longest = max(map(len, counts))
        return np.stack([np.pad(count, (0, longest - len(count))) for count in counts])

    @property
    def train_rows(self) -> int:
        """Number of rows that are trained on."""
        return int(self._rows_of_length.sum())

    def steps(self, batch_size: int, seed: int, epoch: int) -> int:
        """Number of batches of an epoch."""
        windows = shard_windows(self._rows, WINDOW_ROWS, seed, epoch)
        return sum(self._count(window, batch_size) for window in windows)

    def _count(self, window: list[int], batch_size: int) -> int:
        return count_batches(self._rows_of_length[window].sum(axis=0), batch_size)

    def batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches; a thread reads ahead.

        Args:
            batch_size: sentences of a batch.
            seed: of the run.
            epoch: counted from 0.
            skip: batches already done; none of their rows is read.

        Raises:
            LostShardError: a shard is no longer there.
        """
        reads = self._reads(batch_size, seed, epoch, skip)
        with ThreadPoolExecutor(1, "shards") as thread:
            upcoming = thread.submit(next, reads, None)
            while (read := upcoming.result()) is not None:
                upcoming = thread.submit(next, reads, None)
                yield from read

    def _reads(self, batch_size: int, seed: int, epoch: int, skip: int) -> Iterator[list[Batch]]:
        windows = shard_windows(self._rows, WINDOW_ROWS, seed, epoch)
        for number, shards in enumerate(windows):
            count = self._count(shards, batch_size)
            if skip >= count:
                skip -= count
                continue
            # Those of compressed shards are in memory; two windows need not be.
            window = order = read = None
            window = self._open(shards)
            for later in windows[number + 1 : number + 2]:
                self._read_ahead(later)
            order = window_batches(window.lengths, batch_size, np.random.default_rng([seed, epoch, number]))[skip:]
            skip = 0
            together = max(1, _READ_ROWS // batch_size)
            for first in range(0, len(order), together):
                read = window.take(order[first : first + together])
                yield [Batch(input_ids, targets[:, self._columns]) for input_ids, targets in read]

    def _open(self, numbers: list[int]) -> Window:
        # The shards of a window are mapped only while it lasts, so that memory does not grow with them.
        shards = [_reopen(self._paths[number]) for number in numbers]
        return Window(shards, [self._shares.split(shard)[0] for shard in shards])

    def _read_ahead(self, numbers: list[int]) -> None:
        """Tell the system that a window's files are next, so that it reads them in whole pieces."""
        for number in numbers if hasattr(os, "posix_fadvise") else ():
            # A file that is gone shows when it is opened.
            with suppress(OSError), self._paths[number].open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def split(self) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
        """Each shard's path, with the numbers of its rows to train on and of those held out."""
        for number, path in enumerate(self._paths):
            yield path, *self._shares.split(self._shards.open(number))

    def _held_out_rows(self, count: int) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
        """Find the held-out rows with the lowest ids.

        Ids are hashes, so these are a random sample, and so are the first rows of it; the order of the corpus plays no
        part.

        Returns:
            Number and rows of each shard that has some, and int64[n], how to order all of them by id.
        """
        places: list[tuple[int, np.ndarray]] = []
        ids: list[np.ndarray] = []
        for number in range(len(self._paths)):
            shard = self._shards.open(number)
            rows = self._shares.split(shard)[1]
            places.append((number, rows))
            ids.append(np.array(shard.ids[rows]))
        last = np.sort(np.concatenate(ids))[:count][-1:]
        kept = [np.flatnonzero(found <= last) if len(last) else np.zeros(0, np.int64) for found in ids]
        order = np.argsort(np.concatenate([found[rows] for found, rows in zip(ids, kept, strict=True)]), kind="stable")
        return [(number, rows[few]) for (number, rows), few in zip(places, kept, strict=True) if len(few)], order

    def held_out(self) -> tuple[Tokens, torch.Tensor]:
        """Read the held-out rows with the lowest ids, at most 20,000, ascending.

        Returns:
            The tokens of n sentences, and float32[n, dim].

        Raises:
            UserError: they are fewer than three.
        """
        places, order = self._held_out_rows(_HELD_OUT_ROWS)
        # Three rows are the fewest among which ranks of similarities can agree or not.
        if len(order) < 3:
            raise UserError(f"only {len(order)} rows are held out; take a larger corpus, or raise --held-out")
        tokens: list[Tokens] = []
        targets: list[np.ndarray] = []
        for number, rows in places:
            shard = self._shards.open(number)
            tokens.append(shard.tokens.take(rows))
            targets.append(np.array(shard.embeddings[rows][:, self._columns], dtype=np.float32))
        return Tokens.concatenated(tokens).take(order), torch.from_numpy(np.concatenate(targets)[order])

    def held_out_texts(self, count: int = _HELD_OUT_ROWS) -> list[str] | None:
        """Read the sentences of the first `count` rows of `held_out`; None if the shards keep no text."""
        if not self.fingerprint.keep_text:
            return None
        places, order = self._held_out_rows(count)
        texts = [text for number, rows in places for text in self._shards.texts(number, rows)]
        return [texts[place] for place in order]


def _reopen(path: Path) -> Shard:
    try:
        return Shard.open(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise LostShardError(f"shard {path} can no longer be read ({error})") from error


def _columns(fingerprint: Fingerprint, layers: Sequence[int] | None) -> slice | np.ndarray:
    known = fingerprint.layers
    if layers is None:
        return slice(None)
    if len(set(layers)) < len(layers):
        raise UserError(f"--target-layers {','.join(map(str, layers))} names a layer twice")
    if missing := [layer for layer in layers if layer not in known]:
        raise UserError(
            f"--target-layers: the shards hold layers {', '.join(map(str, known))} of the teacher, not {missing[0]}; "
            "sd embed --layers says which to write"
        )
    width = fingerprint.layer_dim
    return np.concatenate([np.arange(width) + width * known.index(layer) for layer in layers])
