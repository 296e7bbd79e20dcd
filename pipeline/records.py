"""Records next to the shards: sidecars, manifest.json, plan.json, sources.json; see docs/shard-format.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import dump_json, load_json, write_atomically

FORMAT_VERSION = 2
"""Version that is written; version 1, which lacks the column `corpus`, can still be read."""
_READABLE = (1, FORMAT_VERSION)
MANIFEST = "manifest.json"
SOURCES = "sources.json"
PLAN = "plan.arrow"
PLAN_SIDECAR = "plan.json"
REJECTED = "rejected.jsonl"
TOKENIZER = "teacher/tokenizer.json"
WORD_EMBEDDINGS = "teacher/word_embeddings.safetensors"


class TeacherFingerprint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Properties of a teacher that decide the embeddings. Fields with a default are written only if they apply."""

    teacher: str
    teacher_weights: list[str]
    """xxh3-128 of each weight file."""
    teacher_config: str
    special_tokens: list[list[int]]
    """Ids before and ids after a sentence."""
    tokenizer: str
    pooling: str
    layers: list[int]
    normalize: bool
    compute_dtype: str
    prompt: str | None = None
    unpooled_tokens: int | None = None
    modules: list[str] | None = None
    token_types: list[int] | None = None
    separator: list[int] | None = None
    """Ids between the sides of a pair; None if the run embeds single sentences."""
    labels: list[str] | None = None
    """Names of the logits."""


class Fingerprint(TeacherFingerprint, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that the output of a run depends on; runs that differ in a field must not share a folder."""

    corpus_files: int
    corpus_bytes: int
    corpus_names: str
    corpus_content: str
    format: str
    text_field: str
    splitter: str
    language: str
    min_words: int
    max_words: int
    shard_rows: int
    plan: str
    dim: int
    """Width of the embeddings of all layers together."""
    vocabulary: int
    max_tokens: int
    token_budget: int
    dtype: str
    keep_text: bool
    compression: str
    spans: float | None = None
    """Share of the sentences with an embedded span. None in format 1."""
    corpora: list[str] | None = None
    """Names of the corpora, one per --corpus; the column `corpus` holds indices of this list. None in format 1."""

    @property
    def layer_dim(self) -> int:
        """Width of the embedding of a single layer."""
        return self.dim // len(self.layers)


TextFields = dict[str, int | float | str]
"""Fields of a `Fingerprint` that the plan depends on: the files of the corpus, and the rules."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of records and of their sentences; rows + duplicates + all rejected = sentences."""

    records: int
    sentences: int
    duplicates: int
    rejected: dict[str, int]


class Totals(Counts, frozen=True, kw_only=True):
    """Sums over all shards."""

    rows: int
    tokens: int
    bytes: int


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Start of a shard's slice in the corpus; see `Position`."""

    file: int
    record: int
    offset: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A shard in the manifest."""

    shard: str
    rows: int
    tokens: int
    bytes: int
    xxh3_128: str


class Sidecar(Entry, frozen=True, kw_only=True):
    """Sidecar of a shard, which is written last: a shard without one does not exist."""

    format: int = FORMAT_VERSION
    source: Start
    counts: Counts
    rejected_xxh3_128: str
    fingerprint: Fingerprint
    notice: str = ""
    """Part of the format; always empty."""

    @property
    def entry(self) -> Entry:
        """Entry of the shard in the manifest."""
        return Entry(**{name: getattr(self, name) for name in Entry.__struct_fields__})


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Manifest of a folder, which is complete once it exists. It holds neither a time nor a host name."""

    format: int = FORMAT_VERSION
    fingerprint: Fingerprint
    notice: str = ""
    totals: Totals
    files: dict[str, str]
    """xxh3-128 of the files next to the shards."""
    shards: list[Entry]


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Content of plan.json: the checksum of plan.arrow, and the fingerprint it was made from."""

    fingerprint: TextFields
    xxh3_128: str


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """Sources of a folder, for people to read; not part of the format."""

    files: int
    names: list[str]
    """Names of the first few files."""
    command: str = ""


def read_sources(folder: Path) -> Sources | None:
    """Read the sources of a folder of shards; None if they are not known."""
    try:
        return msgspec.json.decode((folder / SOURCES).read_bytes(), type=Sources)
    except (OSError, msgspec.DecodeError):
        return None


Record = TypeVar("Record", bound=msgspec.Struct)


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """Read a record and compare its checksum; None if the file is missing or damaged, which is treated the same."""
    try:
        content = load_json(path)
        if content.get("format", FORMAT_VERSION) not in _READABLE:
            raise UserError(
                f"{path.parent} has shard format {content['format']}, and this version reads "
                f"{' and '.join(map(str, _READABLE))}; "
                "install a newer version"
            )
        return msgspec.convert(content, kind)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def write_record(path: Path, record: msgspec.Struct) -> None:
    """Write a record with its checksum; the same record always gives the same bytes."""
    write_atomically(path, dump_json(msgspec.to_builtins(record)))


def as_dict(record: Mapping[str, Any] | msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a record as they are written to JSON."""
    return msgspec.to_builtins(record) if isinstance(record, msgspec.Struct) else dict(record)  # type: ignore[no-any-return]


# Differences between runs, described by options and files.

_CORPUS = {
    "corpus_files": "the number of corpus files",
    "corpus_bytes": "the size of the corpus files",
    "corpus_names": "the names of the corpus files",
    "corpus_content": "the content of the corpus files",
    "corpora": "other --corpus options for the same files",
}
_TEACHER = {
    "teacher": "the teacher",
    "teacher_weights": "the teacher's weights",
    "teacher_config": "the teacher's config.json",
    "tokenizer": "the teacher's tokenizer",
    "special_tokens": "the teacher's special tokens",
    "vocabulary": "the teacher's vocabulary",
}
_OPTIONS = (
    *("language", "min_words", "max_words", "max_tokens", "layers", "shard_rows", "token_budget", "dtype", "pooling"),
    *("spans", "compression", "text_column", "input_format", "columns", "precision"),
)
_WORDS = {
    **_CORPUS,
    **_TEACHER,
    **{name: f"--{name.replace('_', '-')}" for name in _OPTIONS},
    "format": "--input-format",
    "text_field": "--text-column",
    "splitter": "the sentence splitter",
    "compute_dtype": "--precision",
    "keep_text": "text kept (--no-text)",
    "normalize": "vectors of length 1",
    "input": "the input files",
    "student": "the student's weights",
}
# Fields whose values, such as hashes, are not worth showing.
_UNSHOWN = {*_CORPUS, *_TEACHER, "input", "student"} - {"corpus_files", "corpus_bytes", "teacher", "vocabulary"}
# Fields that follow from the others.
_DERIVED = ("plan", "dim", "separator", "labels")


def differing_fields(old: Mapping[str, Any] | msgspec.Struct, new: Mapping[str, Any] | msgspec.Struct) -> list[str]:
    """Describe each field that differs by its option or file: "--min-words (3 there, 1 here)"."""
    old, new = as_dict(old), as_dict(new)
    differing = [field for field in (*new, *(old.keys() - new.keys())) if old.get(field) != new.get(field)]
    # A single difference about the corpus, and one about the teacher, says enough.
    firsts = [next((field for field in kind if field in differing), "") for kind in (_CORPUS, _TEACHER)]
    rest = [field for field in differing if field not in (*_CORPUS, *_TEACHER, *_DERIVED)]

    def short(value: Any) -> str:
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        return text if len(text) <= 40 else text[:16] + "…"

    said = []
    for field in [*filter(None, firsts), *rest] or sorted(differing):
        words = _WORDS.get(field, field.replace("_", " "))
        values = f" ({short(old.get(field))} there, {short(new.get(field))} here)"
        said.append(words if field in _UNSHOWN else words + values)
    return said
