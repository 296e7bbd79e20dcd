"""The stream of training batches, read from memory-mapped shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.manifest import file_problems, require_manifest
from sentence_distill.pipeline.shards import Shard, read_sidecar, shard_problem
from sentence_distill.student.order import shard_windows, window_batches

WINDOW_ROWS = 1 << 20
_HELD_OUT_ROWS = 20_000


@dataclass(frozen=True)
class Batch:
    """Sentences of one length with their teacher's vectors.

    Args:
        input_ids: int64[b, length].
        targets: float32[b, dim].
    """

    input_ids: torch.Tensor
    targets: torch.Tensor


class ShardStream:
    """A folder of shards, split by sentence id into rows to train on and rows held out.

    Attributes:
        manifest: the folder's manifest.
    """

    def __init__(self, folder: Path, *, held_out: float) -> None:
        """Check and map a folder.

        Args:
            folder: a complete folder of shards.
            held_out: share of the rows that is held out.

        Raises:
            UserError: the folder is not complete, or a shard is missing or damaged; it names the shard.
        """
        self.manifest = require_manifest(folder)
        self._limit = np.uint64(held_out * 2**64)
        self._paths = [folder / entry["shard"] for entry in self.manifest["shards"]]
        self._rows = [int(entry["rows"]) for entry in self.manifest["shards"]]
        for path, entry in zip(self._paths, self.manifest["shards"], strict=True):
            _check(path, entry)
        if problems := file_problems(folder, self.manifest):
            raise UserError(f"{folder / problems[0]}; run sd embed again, it makes damaged files anew")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Of the run that made the shards."""
        return self.manifest["fingerprint"]  # type: ignore[no-any-return]

    @cached_property
    def train_rows(self) -> int:
        """Number of rows that are trained on."""
        return sum(len(_split(Shard.open(path), self._limit)[0]) for path in self._paths)

    def steps(self, batch_size: int, seed: int, epoch: int) -> int:
        """Number of batches of an epoch."""
        return sum(1 for _ in self._plan(batch_size, seed, epoch))

    def batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches; the first `skip` are passed over without reading a vector.

        Args:
            batch_size: sentences of a batch.
            seed: of the run.
            epoch: counted from 0.
            skip: batches already done.
        """
        for shards, rows, length in self._plan(batch_size, seed, epoch, skip):
            # Rows of one shard are taken together; their order inside the batch does not matter to the loss,
            # and stays the same each time.
            parts = [(shard, rows[:, 1][rows[:, 0] == number]) for number, shard in enumerate(shards)]
            parts = [(shard, part) for shard, part in parts if len(part)]
            input_ids = np.concatenate([shard.tokens.rectangle(part, length) for shard, part in parts])
            targets = np.concatenate([shard.embeddings[part] for shard, part in parts])
            yield Batch(torch.from_numpy(input_ids), torch.from_numpy(targets).float())

    def _plan(
        self, batch_size: int, seed: int, epoch: int, skip: int = 0
    ) -> Iterator[tuple[list[Shard], np.ndarray, int]]:
        """Each batch as (shards of its window, int64[b, 2] of shard in the window and row, length)."""
        for number, window in enumerate(shard_windows(self._rows, WINDOW_ROWS, seed, epoch)):
            # The shards of a window are mapped only while it lasts, so that memory does not grow with them.
            shards = [Shard.open(self._paths[shard]) for shard in window]
            kept = [_split(shard, self._limit)[0] for shard in shards]
            places = np.concatenate([np.stack([np.full(len(k), i), k], axis=1) for i, k in enumerate(kept)])
            lengths = np.concatenate([shard.tokens.lengths[k] for shard, k in zip(shards, kept, strict=True)])
            rng = np.random.default_rng([seed, epoch, number])
            for rows in window_batches(lengths, batch_size, rng):
                if skip:
                    skip -= 1
                else:
                    yield shards, places[rows], int(lengths[rows[0]])

    def held_out(self) -> tuple[list[np.ndarray], torch.Tensor]:
        """The held-out rows, at most 20,000, in corpus order.

        Returns:
            n arrays of token ids, and float32[n, dim].
        """
        input_ids: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        for path in self._paths:
            shard = Shard.open(path)
            rows = _split(shard, self._limit)[1][: _HELD_OUT_ROWS - len(input_ids)]
            input_ids += [shard.tokens[row].astype(np.int64) for row in rows]
            targets.append(np.array(shard.embeddings[rows], dtype=np.float32))
        # Three rows are the fewest among which ranks of similarities can agree or not.
        if len(input_ids) < 3:
            raise UserError(f"only {len(input_ids)} rows are held out; take a larger corpus, or raise --held-out")
        return input_ids, torch.from_numpy(np.concatenate(targets))


def _split(shard: Shard, limit: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and held out; ids are hashes, so their low end is a random share."""
    held_out = shard.ids < limit
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _check(path: Path, entry: dict[str, Any]) -> None:
    sidecar = read_sidecar(path)
    if sidecar is None or sidecar["xxh3_128"] != entry["xxh3_128"]:
        problem = "has no sidecar that matches the manifest"
    else:
        problem = shard_problem(path, sidecar)
    if problem:
        raise UserError(f"shard {path} {problem}; run sd embed again, it makes damaged shards anew")
