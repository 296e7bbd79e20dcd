"""Sentences to time models with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.manifest import require_manifest
from sentence_distill.pipeline.shards import shard_texts

SENTENCES = 4096
LENGTHS = (8, 16, 32, 64)
_TEXTS_OF_A_LENGTH = 32


def sentences_of_shards(shards: Path, count: int = SENTENCES) -> list[str]:
    """At most `count` sentences, spread evenly over the shards.

    Raises:
        UserError: the shards are not complete, or keep no text.
    """
    manifest = require_manifest(shards)
    if not manifest["fingerprint"]["keep_text"]:
        raise UserError(
            f"{shards} keeps no text (--no-text); sd eval --speed --sentences FILE takes a file of sentences"
        )
    entries = manifest["shards"]
    ends = np.cumsum([entry["rows"] for entry in entries])
    rows = np.unique(np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).astype(np.int64))
    sentences: list[str] = []
    for entry, end in zip(entries, ends, strict=True):
        inside = rows[(rows >= end - entry["rows"]) & (rows < end)] - (end - entry["rows"])
        sentences += shard_texts(shards / entry["shard"], inside)
    return sentences


def sentences_of_file(file: Path, count: int = SENTENCES) -> list[str]:
    """The first `count` lines of a text file that are not empty.

    Raises:
        UserError: it is not there, holds none, or is not UTF-8.
    """
    sentences: list[str] = []
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if len(sentences) < count and line.strip():
                    sentences.append(line.strip())
    except FileNotFoundError:
        raise UserError(f"--sentences {file} is not there; it should be a text file with one sentence a line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--sentences {file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not sentences:
        raise UserError(f"--sentences {file} holds no sentence")
    return sentences


def cut_to_lengths(tokenizer: Any, sentences: Sequence[str]) -> dict[int, list[str]]:
    """Texts of exactly 8, 16, 32 and 64 tokens, at most 32 of each: sentences in a row, cut behind a token.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; special tokens are not counted.
        sentences: what to cut from; they are used again where they are too few.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    by_length: dict[int, list[str]] = {}
    for length in LENGTHS:
        texts = [cut for cut in _cuts(tokenizer, sentences, length) if _tokens(tokenizer, cut) == length]
        if texts:
            by_length[length] = texts
    return by_length


def _cuts(tokenizer: Any, sentences: Sequence[str], length: int) -> list[str]:
    cuts: list[str] = []
    joined = ""
    # A token is one character at least: so many sentences make all the texts that are wanted.
    for number in range(length * _TEXTS_OF_A_LENGTH):
        joined = f"{joined} {sentences[number % len(sentences)]}".strip()
        offsets = tokenizer.encode(joined, add_special_tokens=False).offsets
        if len(offsets) >= length:
            cuts.append(joined[: offsets[length - 1][1]])
            joined = ""
        if len(cuts) == _TEXTS_OF_A_LENGTH:
            break
    return cuts


def _tokens(tokenizer: Any, text: str) -> int:
    # Cut inside a word, a text may have another number of tokens than was counted.
    return len(tokenizer.encode(text, add_special_tokens=False).ids)
