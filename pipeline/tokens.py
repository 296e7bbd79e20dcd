"""Token ids of many sentences, one after the other: what tokenisation gives, shards hold and batches are cut from."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """Token ids of n sentences, without special tokens.

    Args:
        ids: uint16 or uint32[t], all sentences' ids, one after the other.
        offsets: int32 or int64[n + 1], where each sentence begins in `ids`.
    """

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]], dtype: Any = np.uint32) -> "Tokens":
        """From a list of ids for each sentence."""
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        return cls(np.fromiter(chain.from_iterable(lists), dtype, count=int(offsets[-1])), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int[n]: the tokens of each sentence."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray, most: int | None = None) -> "Tokens":
        """The sentences int[k] `rows`, in that order, of each at most its first `most` tokens."""
        lengths = self.lengths[rows] if most is None else np.minimum(self.lengths[rows], most)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        places = np.repeat(self.offsets[rows].astype(np.int64) - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Tokens(self.ids[places], offsets)

    def rectangle(self, rows: np.ndarray, length: int) -> np.ndarray:
        """int64[k, length]: the ids of sentences that all have `length` of them."""
        return self.ids[self.offsets[rows].astype(np.int64)[:, None] + np.arange(length)].astype(np.int64)

    def wrapped(self, prefix: Sequence[int], suffix: Sequence[int]) -> "Tokens":
        """Every sentence with the special tokens `prefix` before and `suffix` behind it."""
        specials = len(prefix) + len(suffix)
        offsets = self.offsets + specials * np.arange(len(self) + 1)
        ids = np.empty(offsets[-1], dtype=self.ids.dtype)
        shift = np.repeat(offsets[:-1] - self.offsets[:-1] + len(prefix), self.lengths)
        ids[np.arange(len(self.ids)) + shift] = self.ids
        for place, token in enumerate(prefix):
            ids[offsets[:-1] + place] = token
        for place, token in enumerate(reversed(suffix), start=1):
            ids[offsets[1:] - place] = token
        return Tokens(ids, offsets)


def tokenize(tokenizer: Any, sentences: Sequence[str], dtype: Any = np.uint32) -> Tokens:
    """Tokenise with a `tokenizers.Tokenizer`, without special tokens, truncation or padding."""
    encodings = tokenizer.encode_batch_fast(list(sentences), add_special_tokens=False)
    return Tokens.of([encoding.ids for encoding in encodings], dtype)
