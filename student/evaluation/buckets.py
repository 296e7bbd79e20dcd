"""Fidelity by the length of sentences, and by how often training saw their rarest word."""

from typing import Any

import numpy as np

from sentence_distill.data.tokenization import Tokens

_LENGTHS = (1, 9, 17, 25, 33, 49)
_FREQUENCY_BUCKETS = 5


def by_length(cosines: np.ndarray, lengths: np.ndarray) -> list[dict[str, Any]]:
    """Mean cosine of sentences of 1-8, 9-16, 17-24, 25-32, 33-48 and 49 or more tokens; none for empty ranges.

    Args:
        cosines: float32[n], of each sentence.
        lengths: int[n], its tokens.

    Returns:
        Ranges with "least" and "most" tokens (None: no end), "rows" and "cosine".
    """
    # A sentence without tokens belongs to the shortest.
    place = np.searchsorted(_LENGTHS, np.maximum(lengths, 1), side="right") - 1
    ends = [start - 1 for start in _LENGTHS[1:]]
    return [
        {"least": least, "most": most, "rows": int(inside.sum()), "cosine": float(cosines[inside].mean())}
        for number, (least, most) in enumerate(zip(_LENGTHS, [*ends, None], strict=True))
        if (inside := place == number).any()
    ]


def by_frequency(cosines: np.ndarray, rarest: np.ndarray) -> list[dict[str, Any]]:
    """Mean cosine of five equal parts of the sentences, ordered by the frequency of their rarest token.

    Args:
        cosines: float32[n], of each sentence.
        rarest: int[n], see `rarest_counts`.

    Returns:
        Parts, rarest first, with "least" and "most" occurrences of the rarest token, "rows" and "cosine".
    """
    parts = np.array_split(np.argsort(rarest, kind="stable"), _FREQUENCY_BUCKETS)
    return [
        {
            "least": int(rarest[part[0]]),
            "most": int(rarest[part[-1]]),
            "rows": len(part),
            "cosine": float(cosines[part].mean()),
        }
        for part in parts
        if len(part)
    ]


def rarest_counts(tokens: Tokens, counts: np.ndarray) -> np.ndarray:
    """int64[n]: how often the rarest token of each sentence occurs, after int64[vocabulary] `counts`."""
    if not len(tokens):
        return np.empty(0, dtype=np.int64)
    # One more count, which is nobody's least: a last sentence without tokens needs a place to begin at.
    found = np.append(counts[tokens.ids], np.iinfo(np.int64).max)
    return np.where(tokens.lengths > 0, np.minimum.reduceat(found, tokens.offsets[:-1]), 0)
