"""Shards of a fine-tuned teacher's logits: what a student of one task learns from (Tang et al. 2019)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.records import PAIR_SEPARATOR
from sentence_distill.pipeline.manifest import require_manifest, require_shard
from sentence_distill.pipeline.shards import Shard, shard_texts
from sentence_distill.pipeline.teacher_folder import LOGITS


@dataclass(frozen=True)
class Logits:
    """A teacher's logits over the text of a task.

    Args:
        texts: one column of n sentences, or two of the sides of n pairs.
        logits: float32[n, classes]; one class is a regression.
        fingerprint: of the run that wrote them.
    """

    texts: tuple[list[str], ...]
    logits: np.ndarray
    fingerprint: dict[str, Any]


def read_logits(folder: Path) -> Logits:
    """Read a complete folder of logits, every checksum compared.

    Raises:
        UserError: the folder is not complete, a shard is missing or damaged, or it holds no logits or no text.
    """
    manifest = require_manifest(folder)
    fingerprint = manifest["fingerprint"]
    if fingerprint["pooling"] != LOGITS:
        raise UserError(
            f"{folder} holds sentence embeddings (pooling {fingerprint['pooling']}) and no logits; write those with a "
            "teacher that has a classification head: sd embed --teacher DIR --pooling logits"
        )
    if not fingerprint["keep_text"]:
        raise UserError(f"{folder} keeps no text; write it again without --no-text")
    texts: list[str] = []
    logits = []
    for entry in manifest["shards"]:
        path = folder / entry["shard"]
        require_shard(path, entry)
        texts += shard_texts(path)
        logits.append(Shard.open(path).embeddings.astype(np.float32))
    columns = tuple(zip(*(text.split(PAIR_SEPARATOR) for text in texts), strict=True))
    return Logits(tuple(map(list, columns)), np.concatenate(logits), fingerprint)


def require_vectors(folder: Path) -> dict[str, Any]:
    """The manifest of a complete folder of single sentences' embeddings, which a student without a task learns from.

    Raises:
        UserError: the folder is not complete, or holds logits or pairs.
    """
    manifest = require_manifest(folder)
    if manifest["fingerprint"]["pooling"] == LOGITS:
        raise UserError(
            f"{folder} holds a fine-tuned teacher's logits, which a student of one task learns from: "
            f"sd finetune STUDENT --task NAME --logits {folder}"
        )
    if "separator" in manifest["fingerprint"]:
        raise UserError(
            f"{folder} holds embeddings of pairs, and this reads single sentences: sd embed with one --text-column, "
            "or embed the pairs with a fine-tuned teacher for sd finetune STUDENT --task NAME --logits SHARDS"
        )
    return manifest
