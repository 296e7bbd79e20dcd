"""Quality of the training shuffle: similarity of neighbors in the corpus, in training, and in a random order.

usage: python benchmarks/order_statistics.py SHARDS [--window ROWS …]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result

from sentence_distill.pipeline.manifest import require_manifest
from sentence_distill.pipeline.shards import Shard
from sentence_distill.student.dataset import shard_windows, window_batches

BATCH = 128


def main() -> None:
    """Measure each window size, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--window", type=int, nargs="*", default=[16_384, 131_072, 1 << 20])
    args = parser.parse_args()
    names = [entry.shard for entry in require_manifest(args.shards).shards]
    shards = [Shard.open(args.shards / name) for name in names]
    lengths = np.concatenate([shard.tokens.lengths for shard in shards])
    vectors = np.concatenate([shard.embeddings for shard in shards]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = []
    random = np.random.default_rng(1).permutation(len(lengths))
    for name, order in (("corpus", np.arange(len(lengths))), ("random", random)):
        whole = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
        rows.append({"order": name, **statistics(whole, lengths, vectors)})
    for window in args.window:
        batches = list(epoch(shards, lengths, window))
        rows.append({"order": f"training, windows of {window:,} rows", **statistics(batches, lengths, vectors)})
    write_result("order_statistics", {"rows": len(lengths), "shards": len(shards), "batch": BATCH}, rows)


def epoch(shards: list[Shard], lengths: np.ndarray, window_rows: int) -> Iterator[np.ndarray]:
    """Return the batches of an epoch, as row numbers in the corpus."""
    rows = [len(shard.ids) for shard in shards]
    starts = np.cumsum([0, *rows])
    for number, window in enumerate(shard_windows(rows, window_rows, 0, 0)):
        places = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in window])
        for batch in window_batches(lengths[places], BATCH, np.random.default_rng([0, 0, number])):
            yield places[batch]


def statistics(batches: list[np.ndarray], lengths: np.ndarray, vectors: np.ndarray) -> dict[str, Any]:
    """Measure the similarity of neighboring sentences and batches.

    Returns:
        neighbours_cosine: mean cosine of the teacher's vectors of consecutive sentences.
        position_correlation: correlation of their positions in the corpus.
        batch_spread: standard deviation of positions in a batch as a share of the corpus, averaged over batches; 0.289
            for a uniform draw.
        next_batch_length: correlation of the mean lengths of consecutive batches.
        next_batch_cosine: mean cosine of the mean vectors of consecutive batches.
    """
    order = np.concatenate(batches)
    means = np.stack([vectors[batch].mean(axis=0) for batch in batches])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    mean_lengths = np.array([lengths[batch].mean() for batch in batches])
    spread = np.mean([batch.std() for batch in batches if len(batch) == BATCH]) / len(order)
    return {
        "neighbours_cosine": round(float((vectors[order[:-1]] * vectors[order[1:]]).sum(axis=1).mean()), 4),
        "position_correlation": round(float(np.corrcoef(order[:-1], order[1:])[0, 1]), 4),
        "batch_spread": round(float(spread), 4),
        "next_batch_length": round(float(np.corrcoef(mean_lengths[:-1], mean_lengths[1:])[0, 1]), 4),
        "next_batch_cosine": round(float((means[:-1] * means[1:]).sum(axis=1).mean()), 4),
    }


if __name__ == "__main__":
    main()
