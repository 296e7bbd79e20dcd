"""What a run's output depends on, by field; runs that differ in any must not share a folder."""

from typing import Any

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.hashing import bytes_hash, file_hash
from sentence_distill.data.sentences import SentenceRules


def text_fingerprint(corpus: Corpus, rules: SentenceRules, shard_rows: int) -> dict[str, Any]:
    """The part that decides the plan: corpus files by name, size and content, and the sentence rules."""
    files = [f"{source.name}\t{source.size}\t{file_hash(source.url)}" for source in corpus.sources]
    return {
        "corpus_files": len(files),
        "corpus_bytes": sum(source.size for source in corpus.sources),
        "corpus_content": bytes_hash("\n".join(files).encode()),
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
