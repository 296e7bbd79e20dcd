"""What a run's output depends on, by field; runs that differ in any must not share a folder."""

from collections.abc import Iterable
from typing import Any

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.data.sources import Source
from sentence_distill.pipeline.plan import Plan


def require_utf8_names(sources: Iterable[Source]) -> None:
    """Refuse names that neither a fingerprint nor rejected.jsonl could hold.

    Raises:
        UserError: the name of a file is not UTF-8.
    """
    for source in sources:
        try:
            source.name.encode()
        except UnicodeEncodeError:
            raise UserError(f"the name of the corpus's file {source.name!r} is not UTF-8; rename it") from None


def text_fingerprint(
    corpus: Corpus, rules: SentenceRules, shard_rows: int, known: Plan | None = None
) -> dict[str, Any]:
    """The part that decides the plan: corpus files by name, size and content, and the sentence rules.

    Args:
        corpus: its files.
        rules: the sentence rules.
        shard_rows: sentences of a slice.
        known: a plan whose word is taken for the content of files with the same names and sizes, so that not
            each of many jobs reads the whole corpus; None reads all.

    Raises:
        UserError: a file can't be read to its end, or its name is not UTF-8.
    """
    require_utf8_names(corpus.sources)
    listing = [f"{source.name}\t{source.size}" for source in corpus.sources]
    names = bytes_hash("\n".join(listing).encode())
    if known is not None and known.fingerprint["corpus_names"] == names:
        content = known.fingerprint["corpus_content"]
    else:
        content = bytes_hash("\n".join(source.content_hash() for source in corpus.sources).encode())
    return {
        "corpus_files": len(listing),
        "corpus_bytes": sum(source.size for source in corpus.sources),
        "corpus_names": names,
        "corpus_content": content,
        "format": corpus.format or "auto",
        "text_field": corpus.text_field,
        "splitter": rules.splitter,
        "language": rules.language if rules.split else "none",
        "min_words": rules.min_words,
        "max_words": rules.max_words,
        "shard_rows": shard_rows,
    }


def differing_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`field (old -> new)` for each field that differs."""
    return [
        f"{field} ({_short(old.get(field))} -> {_short(new.get(field))})"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:16] + "…"
