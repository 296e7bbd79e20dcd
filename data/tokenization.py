"""Tokenization: from text to flat arrays of token ids, for everything that reads text.

WordPiece, the tokenizer of BERT and of most sentence encoders, runs in nanotoken, which gives the same ids as the
`tokenizers` library about 50 times as fast, as arrays and not as lists of Python ints. Other tokenizers (BPE, Unigram,
and WordPiece with parts that nanotoken lacks) run in `tokenizers`.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

_logger = logging.getLogger(__name__)
# nanotoken is a young library. Whenever a tokenizer is loaded, it must agree with `tokenizers` on these texts, which
# cover what implementations of WordPiece disagree on: accents, case, scripts without blanks, control characters,
# special tokens, long words.
_HARD_TEXTS = (
    "",
    "  \t\r\n ",
    "The quick brown fox didn't jump; it walked 3.5 km (2 mi) on 01/02/2003!",
    "na\u00efve caf\u00e9 \u00dcber-stra\u00dfe \u00c5ngstr\u00f6m",
    "e\u0301 o\u0308 n\u0303 \u0301x a\u0328\u0301",
    "\u0130stanbul I\u0131 \u015e\u015f \u01c5 \u1e9e",
    "\u03a3\u0391\u03a3 \u1f48\u03b4\u03c5\u03c3\u03c3\u03b5\u03cd\u03c2 \u03c2\u03c3",
    "\u4e2d\u6587\u5206\u8bcd \u65e5\u672c\u8a9e\u306e \ud55c\uad6d\uc5b4 a\u4e2db \uf900 \U00020000",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u263a\ufe0f x\U0001f44d\U0001f3fdy",
    "a\u200bb\ufeffc\x00d\x0be\x0cf\u00adg\ufffdh\x7fi\x85j\u2028k\u00a0l\u3000m\u180en",
    "[CLS] a [SEP]b[MASK] [UNK][PAD] [cls] <s></s> <mask>",
    "x" * 99 + " " + "y" * 100 + " " + "z" * 101 + " " + "\u00e9" * 120,
    "\u201cquoted\u201d \u2014 \u2018single\u2019\u2026 \u00abguillemets\u00bb \u00bfqu\u00e9?",
    "#tag @me $5 50% a_b ~`^|<>=+ {x} [y] \\z",
    "\ufb01ne \ufb02ow \u2460 \u2163 \u00bd \u2122 \u212b \u1fc1 \uff21\uff42\uff11",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0645\u0631\u062d\u0628\u0627\u064b \u05e9\u05c1\u05dc\u05d5\u05dd",
    "##ing ing## #ing - -- --- ' '' ''' a.b.c ...",
    "\ue000 \U000f0000 \u0378 \U0010fffd",
)


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, concatenated.

    Args:
        ids: uint16 or uint32[t], the ids of all texts.
        offsets: int32 or int64[n + 1], the start of each text in `ids`, and the end of the last one.
    """

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]], dtype: Any = np.uint32) -> "Tokens":
        """Make `Tokens` from one list of ids per text."""
        ids = np.fromiter(chain.from_iterable(lists), dtype, count=sum(map(len, lists)))
        return cls(ids, _offsets([len(each) for each in lists]))

    @classmethod
    def concatenated(cls, parts: "Sequence[Tokens]") -> "Tokens":
        """Return the texts of all parts, one part after the other."""
        ids = np.concatenate([part.ids for part in parts]) if parts else np.empty(0, dtype=np.uint32)
        return cls(ids, _offsets(np.concatenate([np.empty(0, dtype=np.int64), *(part.lengths for part in parts)])))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, int[n]."""
        return np.diff(self.offsets)

    def astype(self, dtype: Any) -> "Tokens":
        """Convert the ids to another type."""
        return Tokens(self.ids.astype(dtype, copy=False), self.offsets)

    def take(self, rows: np.ndarray, most: "int | np.ndarray | None" = None) -> "Tokens":
        """Return the texts int[k] `rows` in that order, each truncated to `most` tokens (an int, or int[k])."""
        lengths = self.lengths[rows] if most is None else np.minimum(self.lengths[rows], most)
        offsets = _offsets(lengths)
        places = np.repeat(self.offsets[rows].astype(np.int64) - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Tokens(self.ids[places], offsets)

    def cut(self, most: int) -> "Tokens":
        """Truncate each text to `most` tokens; no copy is made if none is longer."""
        return self if self.lengths.max(initial=0) <= most else self.take(np.arange(len(self)), most)

    def rectangle(self, rows: np.ndarray, length: int) -> np.ndarray:
        """Return int64[k, length], the ids of k texts that all have `length` tokens."""
        return self.ids[self.offsets[rows].astype(np.int64)[:, None] + np.arange(length)].astype(np.int64)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Pad the texts with zeros at the end; return int64[n, longest], at least one wide, and int64[n] lengths."""
        lengths = self.lengths.astype(np.int64)
        out = np.zeros((len(self), max(1, int(lengths.max(initial=0)))), dtype=np.int64)
        # Boolean indexing fills row by row, which is the order of the ids.
        out[np.arange(out.shape[1]) < lengths[:, None]] = self.ids
        return out, lengths

    def wrapped(self, prefix: Sequence[int], suffix: Sequence[int]) -> "Tokens":
        """Put the special tokens `prefix` before and `suffix` after every text."""
        before, after = (
            Tokens(np.tile(np.array(ids, dtype=self.ids.dtype), len(self)), len(ids) * np.arange(len(self) + 1))
            for ids in (prefix, suffix)
        )
        return Tokens.joined([before, self, after])

    @classmethod
    def joined(cls, parts: "Sequence[Tokens]") -> "Tokens":
        """Join the n texts of several parts row by row: the first text of each part, then the second, and so on."""
        lengths = np.stack([part.lengths for part in parts], axis=1).astype(np.int64)
        starts = _offsets(lengths.reshape(-1))
        ids = np.empty(starts[-1], dtype=np.result_type(*(part.ids.dtype for part in parts)))
        for number, part in enumerate(parts):
            shift = starts[:-1].reshape(lengths.shape)[:, number] - part.offsets[:-1]
            ids[np.arange(len(part.ids)) + np.repeat(shift, lengths[:, number])] = part.ids
        return cls(ids, starts[:: len(parts)])


def _offsets(lengths: Any) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


class TextTokenizer:
    """Tokenizer of texts, without special tokens, truncation or padding.

    `backend` is the equivalent `tokenizers.Tokenizer`, for libraries that need one; it can add special tokens.
    """

    def __init__(self, tokenizer_json: str) -> None:
        """Load the content of a tokenizer.json; raise a ValueError if it can't be read."""
        try:
            self.backend = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises plain exceptions
            raise ValueError(f"not a tokenizer.json: {error}") from error
        self.backend.no_truncation()
        self.backend.no_padding()
        self._wordpiece = _open_wordpiece(tokenizer_json, self.backend)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize n texts; the ids are uint32."""
        if self._wordpiece is not None:
            # On one thread, because callers parallelize over slices, batches or requests themselves.
            return Tokens(*self._wordpiece.encode_batch(texts, add_special_tokens=False, parallel=False))
        return _by_tokenizers(self.backend, texts)

    def to_str(self) -> str:
        """Return the content of a tokenizer.json."""
        return str(self.backend.to_str())

    def vocabulary(self) -> dict[str, int]:
        """Return the id of each token, including added tokens."""
        return dict(self.backend.get_vocab())

    def __reduce__(self) -> tuple[Any, ...]:
        return TextTokenizer, (self.to_str(),)


def _open_wordpiece(tokenizer_json: str, backend: Tokenizer) -> Any:
    """Return the nanotoken tokenizer with the same settings; None if `backend` has to be used."""
    settings = json.loads(tokenizer_json)
    if settings["model"].get("type", "WordPiece") != "WordPiece":
        return None
    try:
        import nanotoken
    except ImportError:
        return _fall_back("nanotoken is not installed")
    settings |= dict.fromkeys(("post_processor", "truncation", "padding"))
    try:
        wordpiece = nanotoken.WordPieceTokenizer.from_json(json.dumps(settings))
    except nanotoken.UnsupportedTokenizerError as error:
        return _fall_back(str(error))
    found = Tokens(*wordpiece.encode_batch(list(_HARD_TEXTS), add_special_tokens=False, parallel=False))
    expected = _by_tokenizers(backend, _HARD_TEXTS)
    if not (np.array_equal(found.ids, expected.ids) and np.array_equal(found.offsets, expected.offsets)):
        return _fall_back("nanotoken and tokenizers disagree about this tokenizer")
    return wordpiece


def _fall_back(reason: str) -> None:
    _logger.warning("%s: falling back to the tokenizers library, which gives the same ids more slowly", reason)


def _by_tokenizers(backend: Tokenizer, texts: Sequence[str]) -> Tokens:
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return Tokens.of([encoding.ids for encoding in encodings])
