"""A smaller vocabulary for a trained student: its frequent tokens stay, the others are read as their pieces."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.tokens import tokenize
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.model import Student

_LINES = 4096


def count_tokens(student: Student, locations: Sequence[str]) -> np.ndarray:
    """How often each of a student's tokens occurs in text.

    Args:
        student: whose tokens.
        locations: files, folders, globs or URLs, as `sd embed --corpus` takes them.

    Returns:
        int64[vocabulary].

    Raises:
        UserError: there is no such text, it can't be read, or it holds no token.
    """
    counts = np.zeros(student.encoder.config.vocabulary, dtype=np.int64)
    texts = (record.text for record in Corpus.open(locations).records() if record.text is not None)
    while lines := list(islice(texts, _LINES)):
        counts += np.bincount(tokenize(student.tokenizer, lines).ids, minlength=len(counts))
    if not counts.any():
        raise UserError(f"--corpus {', '.join(locations)} holds no text to count tokens in; name another")
    return counts


def frequent_tokens(tokenizer: Tokenizer, counts: np.ndarray, size: int) -> np.ndarray:
    """Which tokens stay, int64[at most `size`], ascending.

    Special tokens stay, and all single characters, both as a word's beginning and inside one, so that what could be
    read before can be read still; the most frequent of the others fill up the rest.

    Args:
        tokenizer: of WordPiece.
        counts: int64[vocabulary], how often each token occurs.
        size: of the smaller vocabulary.

    Raises:
        UserError: another kind of tokenizer, or `size` leaves no room for what must stay.
    """
    model = _word_piece(tokenizer)
    prefix = model["continuing_subword_prefix"]
    must = {number for token, number in model["vocab"].items() if len(token.removeprefix(prefix)) == 1}
    must |= {tokenizer.token_to_id(model["unk_token"]), *tokenizer.get_added_tokens_decoder()}
    if size < len(must):
        raise UserError(
            f"--vocabulary {size} is too small: special tokens and single characters, which stay, are {len(must)}"
        )
    ranks = np.array(counts, dtype=np.float64)
    ranks[list(must)] = np.inf
    return np.sort(np.argsort(-ranks, kind="stable")[:size])


def prune_student(student: Student, kept: np.ndarray) -> Student:
    """The student with the tokens int64[n] `kept` alone, ascending; it shares no tensor with the given one."""
    old = student.encoder
    encoder = StudentEncoder(replace(old.config, vocabulary=len(kept)))
    weights = {name: weight.clone() for name, weight in old.state_dict().items()}
    weights["embedding.weight"] = old.embedding.weight.detach()[kept].clone()
    encoder.load_state_dict(weights)
    return Student(encoder, prune_tokenizer(student.tokenizer, kept))


def prune_tokenizer(tokenizer: Tokenizer, kept: np.ndarray) -> Tokenizer:
    """A WordPiece tokenizer of the tokens int64[n] `kept` alone, numbered from 0 in that order.

    It adds no special tokens.

    Raises:
        UserError: another kind of tokenizer.
    """
    model = _word_piece(tokenizer)
    numbers = {int(old): new for new, old in enumerate(kept)}
    settings = json.loads(tokenizer.to_str())
    # Added tokens too: those that the model does not know would be numbered anew behind it.
    vocabulary = {token: numbers[old] for token, old in tokenizer.get_vocab().items() if old in numbers}
    settings["model"] = {**model, "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1]))}
    for token in settings["added_tokens"]:
        token["id"] = numbers[token["id"]]
    settings["post_processor"] = None
    return Tokenizer.from_str(json.dumps(settings))


def _word_piece(tokenizer: Tokenizer) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    if model["type"] != "WordPiece":
        raise UserError(
            f"--vocabulary makes a WordPiece vocabulary smaller, and this student's is {model['type']}; leave it out"
        )
    return model
