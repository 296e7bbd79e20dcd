"""Synthetic examples from a task's unlabelled text, for distillation on that task.

Tang et al., "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks" (arXiv:1903.12136), data
augmentation for distillation: masking and n-gram sampling. Their third rule, to replace a word by another of the
same part of speech, needs a tagger and is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sentence_distill.data.hashing import sentence_id

# Which sentences of a pair its copies augment, in turn.
_PAIR_CYCLE = ((0,), (1,), (0, 1))


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Probabilities of the rules, by default the paper's."""

    p_mask: float = 0.1
    """That a word becomes the mask token."""
    p_ngram: float = 0.25
    """That of a text only one n-gram stays, once its words have been through masking."""
    longest_ngram: int = 5
    """n is drawn from 1 to this, each as likely; a shorter text stays whole where n is beyond its length."""

    def __post_init__(self) -> None:
        if not (0 <= self.p_mask <= 1 and 0 <= self.p_ngram <= 1 and self.longest_ngram >= 1):
            raise ValueError(f"probabilities lie between 0 and 1, an n-gram has at least a word: {self}")


def synthetic_examples(
    texts: tuple[list[str], ...], *, copies: int, mask: str, seed: int, config: AugmentConfig | None = None
) -> Iterator[tuple[str, ...]]:
    """Augment each example `copies` times and yield what is new: neither an example nor yielded before.

    The copies of a pair go round: only its first sentence is augmented, only its second, both.

    Args:
        texts: one or two columns of n sentences.
        copies: of each example; what they have in common is dropped, so that fewer may come.
        mask: the teacher's mask token.
        seed: of the drawing; the same arguments always give the same examples.
        config: probabilities.
    """
    config = config or AugmentConfig()
    rng = np.random.default_rng(seed)
    seen = {_identity(example) for example in zip(*texts, strict=True)}
    for example in zip(*texts, strict=True):
        words = [text.split() for text in example]
        for copy in range(copies):
            chosen = _PAIR_CYCLE[copy % len(_PAIR_CYCLE)] if len(example) == 2 else (0,)
            synthetic = tuple(
                " ".join(_augment_words(words[column], mask, config, rng)) if column in chosen else text
                for column, text in enumerate(example)
            )
            identity = _identity(synthetic)
            if identity not in seen:
                seen.add(identity)
                yield synthetic


def _augment_words(words: list[str], mask: str, config: AugmentConfig, rng: np.random.Generator) -> list[str]:
    """Masking, one number a word, then with its own probability n-gram sampling of the whole text."""
    draws = rng.random(len(words))
    masked = [mask if draw < config.p_mask else word for word, draw in zip(words, draws.tolist(), strict=True)]
    if rng.random() >= config.p_ngram or not words:
        return masked
    length = min(int(rng.integers(1, config.longest_ngram + 1)), len(words))
    first = int(rng.integers(len(words) - length + 1))
    return masked[first : first + length]


def _identity(example: tuple[str, ...]) -> int:
    # Hashes take a fraction of the memory that millions of examples would.
    return sentence_id("\t".join(" ".join(text.split()) for text in example))
