"""Options of stage one."""

from dataclasses import dataclass

from sentence_distill.data.sentences import SentenceRules

MAX_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Options of a run that its output depends on."""

    rules: SentenceRules
    """What becomes a sentence."""
    shard_rows: int = 16_384
    """Sentences of a slice; a shard holds at most slightly more rows. A kill loses at most one shard's work."""
    max_tokens: int = 0
    """Sentences with more tokens, special tokens not counted, are rejected; 0 lets the run take `MAX_TOKENS`, or what
    the teacher reads if that is less."""
    token_budget: int = 0
    """Tokens of a teacher's batch; 0 lets the run take what suits the device."""
    dtype: str = ""
    """Of the embeddings on disk, "float16" or "float32"; "" lets the run take float16, and float32 for logits."""
    keep_text: bool = True
    """Whether the shards carry the sentences."""
    compression: str | None = None
    """Of the shards' buffers: None, "zstd" or "lz4"; compressed shards can't be memory-mapped."""
