"""Pairs of sentences, "first\\tsecond": how a teacher's tokenizer joins the two sides."""

from collections.abc import Sequence

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.records import PAIR_SEPARATOR
from sentence_distill.data.tokenization import TextTokenizer, Tokens


def separator_tokens(tokenizer: TextTokenizer, prefix: Sequence[int], suffix: Sequence[int], name: str) -> list[int]:
    """The ids that the tokenizer puts between two sentences: one [SEP] for BERT, </s></s> for RoBERTa.

    Args:
        tokenizer: with its post-processor.
        prefix: what it puts before a sentence.
        suffix: what it puts behind one.
        name: the teacher's, for messages.

    Raises:
        UserError: it puts nothing there, or joins a pair in another way than first, separator, second.
    """
    inner = tokenizer.backend.encode("a", add_special_tokens=False).ids
    whole = tokenizer.backend.encode("a", "a", add_special_tokens=True).ids
    separator = whole[len(prefix) + len(inner) : len(whole) - len(inner) - len(suffix)]
    if not separator or whole != [*prefix, *inner, *separator, *inner, *suffix]:
        raise UserError(
            f"teacher {name!r} takes no pairs: its tokenizer puts nothing between two sentences; name one "
            "--text-column only, or a teacher whose tokenizer.json has a template for pairs"
        )
    return separator


def tokenize_pairs(tokenizer: TextTokenizer, pairs: Sequence[str], separator: Sequence[int]) -> Tokens:
    """Token ids of each pair: those of its first side, the separator, those of its second side.

    The separator stands in a pair once, so that its ids tell where the second side begins: text such as "[SEP]"
    is ordinary text here, while other special tokens, [MASK] above all, stay what they are.

    Args:
        tokenizer: the teacher's.
        pairs: n strings, see `join_sides`.
        separator: see `separator_tokens`.

    Returns:
        Tokens of n pairs; none at all for a pair that can't be told apart, because a side has no tokens or makes the
        separator's even so.
    """
    sides = [side for pair in pairs for side in pair.split(PAIR_SEPARATOR)]
    for token in map(str, dict.fromkeys(map(tokenizer.backend.id_to_token, separator))):
        sides = [side.replace(token, f"{token[0]} {token[1:]}") for side in sides]
    tokens = tokenizer.tokenize(sides)
    # How many of the separator's ids each side holds.
    before = np.concatenate([[0], np.cumsum(np.isin(tokens.ids, separator))])
    confused = np.diff(before[tokens.offsets])
    parted = ((tokens.lengths > 0) & (confused == 0)).reshape(-1, 2).all(axis=1)
    rows = np.arange(0, len(sides), 2)
    between = Tokens.of([separator] * len(rows))
    joined = Tokens.joined([tokens.take(rows), between, tokens.take(rows + 1)])
    return joined.take(np.arange(len(joined)), np.where(parted, joined.lengths, 0))
