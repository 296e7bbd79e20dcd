"""A shuffle window: the rows of some shards, from which any are taken at once."""

from collections.abc import Sequence

import numpy as np
import torch

from sentence_distill.data.tokenization import Tokens
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
