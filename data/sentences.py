"""From the text of a record to clean sentences: splitting, normalization, and filters that need no tokenizer."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import sentence_id
from sentence_distill.data.options import check, option
from sentence_distill.data.records import PAIR_SEPARATOR

# Spans have two to eight words.
_SPAN_LENGTHS = 7
# Control characters and byte-order marks; str.split handles white space.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff\u200b]")
_LETTER = re.compile(r"[^\W\d_]")
# Chinese, Japanese, Tibetan, Burmese and Khmer; and Thai and Lao, which do not mark sentence ends either.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)
THAI = re.compile("[\u0e00-\u0eff]")
# ISO 639-1. For a language without its own rules, sentencex uses those of a related language, or of English.
_ISO_639_1 = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es
et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj
kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv
ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti
tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
LANGUAGES = frozenset(_ISO_639_1.split())


@dataclass(frozen=True, kw_only=True)
class SentenceRules:
    """Rules that decide which text becomes a sentence."""

    split: bool = option(True, "Split each line into sentences; pairs are never split.", flags=("--split/--no-split",))
    language: str = option("en", "Language of the text, an ISO 639-1 code, for the sentence splitter.")
    min_words: int = option(3, "Reject sentences with fewer words.", least=1)
    max_words: int = option(100, "Reject sentences with more words, mostly lists and tables that can't be split.")
    spans: float = option(
        0.0,
        "Also embed a span of two to eight words from this share of the sentences, for a student that will encode "
        "queries, titles and other short text.",
        least=0,
        most=1,
    )
    pairs: bool = False
    """True if records are pairs of sentences (see `Row.record`), each side of which must pass the rules."""

    def __post_init__(self) -> None:
        check(self)
        if not 1 <= self.min_words <= self.max_words:
            raise UserError(f"--min-words {self.min_words} and --max-words {self.max_words} leave no sentence")
        if self.language.partition("-")[0] not in LANGUAGES:
            raise UserError(
                f"--language {self.language}: unknown language; give a two-letter code (ISO 639-1) such as en, de or zh"
            )
        if self.pairs:
            if self.spans:
                raise UserError("--spans works on single sentences, not on pairs; leave it out")
            object.__setattr__(self, "split", False)

    @property
    def splitter(self) -> str:
        """Name and version of the splitter, because another version may split differently."""
        return f"sentencex {version('sentencex')} on normalised lines" if self.split else "none"


class Candidate(NamedTuple):
    """A normalized sentence, and the `reason` why it is rejected, or ""."""

    text: str
    reason: str = ""


def split_sentences(text: str, rules: SentenceRules) -> Iterator[Candidate]:
    """Yield the sentences of one record in order, normalized and checked against `rules`.

    A span that `rules.spans` asks for follows its sentence. An empty record yields one candidate with the reason
    "empty"; a pair is one candidate.
    """
    if rules.pairs:
        sides = [normalise(side) for side in text.split(PAIR_SEPARATOR)]
        reasons = [_problem(side, rules) if side else "empty" for side in sides]
        yield Candidate(PAIR_SEPARATOR.join(sides), next(filter(None, reasons), ""))
        return
    # A line is a paragraph in every format, so a sentence never crosses a line end.
    sentences = [line for part in (text.splitlines() if rules.split else [text]) if (line := normalise(part))]
    if rules.split:
        # Imported here, because not every platform has a wheel of sentencex, and --no-split works without it.
        import sentencex

        try:
            parts = [part.strip() for line in sentences for part in sentencex.segment(rules.language, line)]
        except BaseException as error:
            # A Rust panic is no Exception, and its class can't be imported. Seen for "R\u00a0.", which normalization
            # prevents.
            if type(error).__name__ != "PanicException":
                raise
            yield Candidate(text, "splitter failed")
            return
        sentences = list(filter(None, parts))
    if not sentences:
        yield Candidate("", "empty")
    for sentence in sentences:
        yield (candidate := Candidate(sentence, _problem(sentence, rules)))
        if rules.spans and not candidate.reason and (span := _span(sentence, rules.spans)):
            yield Candidate(span)


def _span(sentence: str, share: float) -> str:
    """Draw a span of two to eight words, decided by the sentence's hash; "" for sentences outside the share."""
    number, words = sentence_id(sentence), sentence.split(" ")
    length = 2 + number % _SPAN_LENGTHS
    if number >> 32 >= share * 2**32 or len(words) <= length:
        return ""
    first = (number // _SPAN_LENGTHS) % 2**24 % (len(words) - length + 1)
    span = " ".join(words[first : first + length])
    return span if _LETTER.search(span) else ""


def normalise(text: str) -> str:
    """Return text in NFC, with each run of white space and control characters replaced by a blank, and stripped."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    # The blank is the only white space that counts as printable, so this test spares most text the regex.
    if text.isprintable() and "  " not in text:
        return text.strip(" ")
    return " ".join(_CONTROL.sub(" ", text).split())


def count_words(sentence: str) -> int:
    """Count the words of a normalized sentence, which are separated by blanks.

    In scripts without blanks, two characters count as a word, and in Thai and Lao four, about the length of words.
    """
    words = sentence.count(" ") + 1
    if sentence.isascii() or not (letters := len(UNSPACED.findall(sentence))):
        return words
    thai = len(THAI.findall(sentence))
    return words - 1 + max(1, (letters - thai) // 2 + thai // 4)


def _problem(sentence: str, rules: SentenceRules) -> str:
    words = count_words(sentence)
    if words < rules.min_words:
        return "too few words"
    if words > rules.max_words:
        return "too many words"
    return "" if _LETTER.search(sentence) else "no letters"
