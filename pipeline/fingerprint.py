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
    """Return the part that decides the plan: corpus files by name, size and content, and the sentence rules.

    Args:
        corpus: its files.
        rules: the sentence rules.
        shard_rows: sentences of a slice.
        known: a plan whose word is taken for the content of files with the same names and sizes, so that not
            each of many jobs reads the whole corpus; None reads all.

    Raises:
        UserError: a file can't be read to its end, or its name is not UTF-8.
    """
    quick = quick_fingerprint(corpus, rules, shard_rows)
    if known is not None and known.fingerprint["corpus_names"] == quick["corpus_names"]:
        return {**quick, "corpus_content": known.fingerprint["corpus_content"]}
    content = bytes_hash("\n".join(source.content_hash() for source in corpus.sources).encode())
    return {**quick, "corpus_content": content}


def quick_fingerprint(corpus: Corpus, rules: SentenceRules, shard_rows: int) -> dict[str, Any]:
    """Return what of `text_fingerprint` needs no reading: all but the content of the files.

    Raises:
        UserError: the name of a file is not UTF-8.
    """
    require_utf8_names(corpus.sources)
    listing = [f"{source.name} {source.size}" for source in corpus.sources]
    return {
        "corpus_files": len(listing),
        "corpus_bytes": sum(source.size for source in corpus.sources),
        "corpus_names": bytes_hash("\n".join(listing).encode()),
        "format": corpus.format or "auto",
        "text_field": corpus.text_column,
        "splitter": rules.splitter,
        "language": rules.language if rules.split else "none",
        "min_words": rules.min_words,
        "max_words": rules.max_words,
        "shard_rows": shard_rows,
    }


# Fields as the user knows them. Of those of one kind the first that differs says enough.
_CORPUS = {
    "corpus_files": "another number of corpus files",
    "corpus_bytes": "corpus files of another size",
    "corpus_names": "corpus files of other names",
    "corpus_content": "corpus files of another content",
}
_TEACHER = {
    "teacher": "the teacher",
    "teacher_weights": "the teacher's weights",
    "teacher_config": "the teacher's config.json",
    "tokenizer": "the teacher's tokenizer",
    "special_tokens": "the teacher's special tokens",
    "vocabulary": "the teacher's vocabulary",
}
_NAMED_AS_OPTIONS = (
    *("language", "min_words", "max_words", "max_tokens", "layers", "shard_rows", "token_budget", "dtype", "pooling"),
    *("compression", "text_column", "input_format", "columns", "precision"),
)
_OPTIONS = {
    **{name: f"--{name.replace('_', '-')}" for name in _NAMED_AS_OPTIONS},
    "format": "--input-format",
    "text_field": "--text-column",
    "splitter": "the sentence splitter",
    "compute_dtype": "--precision",
    "keep_text": "text kept (--no-text)",
    "normalize": "vectors of length 1",
}
# Of these a value would tell nobody anything.
_UNSHOWN = {"input": "the input files", "student": "the student's weights"}
# These follow from the others.
_DERIVED = ("plan", "dim", "separator", "labels")


def differing_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Describe each field that differs, in the words of options and files: "--min-words is 3 there, 1 here"."""
    fields = [field for field in (*new, *(old.keys() - new.keys())) if old.get(field) != new.get(field)]
    said = []
    for kind in (_CORPUS, _TEACHER):
        # Two files tell more by their number or size than by their hashes.
        if found := next((field for field in kind if field in fields), None):
            numbers = isinstance(old.get(found), int) and isinstance(new.get(found), int)
            named = found == "teacher" or numbers
            said.append(_difference(kind[found], old.get(found), new.get(found)) if named else kind[found])
    for field in fields:
        if field not in _CORPUS and field not in _TEACHER and field not in _DERIVED:
            name = _OPTIONS.get(field, field.replace("_", " "))
            shown = _difference(name, old.get(field), new.get(field))
            said.append(_UNSHOWN.get(field, shown))
    return said or [_difference(field, old.get(field), new.get(field)) for field in sorted(fields)]


def _difference(name: str, old: Any, new: Any) -> str:
    return f"{name} ({_short(old)} there, {_short(new)} here)"


def _short(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else text[:16] + "…"
