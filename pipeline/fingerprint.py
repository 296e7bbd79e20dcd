"""What a run's output depends on, by field; runs that differ in any must not share a folder."""

from typing import Any

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.pipeline.plan import Plan


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
    """
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
