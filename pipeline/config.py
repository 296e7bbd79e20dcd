"""Options of stage one, `sd embed`."""

from dataclasses import dataclass, field, replace
from typing import Literal

from sentence_distill.data.errors import UserError
from sentence_distill.data.options import check, option, parse_share
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.pipeline.teacher_folder import LOGITS, POOLER, SENTENCE_POOLINGS

MAX_TOKENS = 128
HUB_PREFIX = "hf:"


def parse_pooling(text: str) -> str:
    """Read a pooling, as in mean+max or mean+logits; pooler and logits also stand alone."""
    names = text.split("+")
    if text in (POOLER, LOGITS) or set(names[:-1] if names[-1] == LOGITS else names) <= set(SENTENCE_POOLINGS):
        return text
    raise ValueError(
        f"{text!r} is none of {', '.join(SENTENCE_POOLINGS)}, or several joined by +, pooler or logits; logits can "
        "also come last, as in mean+logits"
    )


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Options of a run."""

    corpus: tuple[str, ...] = option(
        (),
        "File, folder, glob, fsspec URL, - for standard input, or hf:NAME[:CONFIG[:SPLIT]]; may be repeated. The same "
        "as an argument.",
        argument=True,
        repeated=True,
        flags=("--corpus",),
        metavar="[CORPUS]...",
    )
    out: str = option(
        "shards",
        "Folder or object-store URL of the shards; a run that was stopped is resumed.",
        flags=("--out", "-o"),
        metavar="FOLDER",
    )
    teacher: str | None = option(
        None,
        "Folder or hub name of a transformer encoder, minilm or mpnet.",
        shown="minilm, which is all-MiniLM-L6-v2",
        metavar="NAME",
    )
    pooling: str | None = option(
        None,
        "Pool the transformer's own states: cls, mean, max, mean_sqrt_len_tokens, weightedmean, lasttoken, pooler; or "
        "take logits; or both, as in mean+logits.",
        shown="all modules of a sentence-transformers teacher, logits of one with a classification head, otherwise "
        "mean",
        parse=parse_pooling,
        metavar="NAME[+NAME…]",
    )
    layers: tuple[int, ...] = option(
        (-1,),
        "Hidden layers to pool and concatenate; 0 is the word embeddings, -1 the last layer.",
        metavar="N[,N…]",
    )
    input_format: Literal["text", "wikiextractor", "jsonl", "json", "csv", "tsv", "parquet", "arrow"] | None = option(
        None, "Format of the corpus.", shown="found from content and name", aliases=("--format",)
    )
    text_column: str = option(
        "text",
        "Column of the text; two make each record a pair of sentences, which is not split.",
        aliases=("--text-field",),
        metavar="NAME[,NAME]",
    )
    rules: SentenceRules = field(default_factory=SentenceRules)
    max_tokens: int | None = option(
        None,
        "Reject sentences with more tokens.",
        shown=f"{MAX_TOKENS}, or what the teacher reads if that is less",
        least=1,
    )
    shard_rows: int = option(
        16_384, "Sentences of a shard, the unit of commit and resume; a kill loses at most one shard's work.", least=1
    )
    token_budget: int = option(0, "Tokens of a teacher's batch.", shown="4096, on a GPU 16384", least=0)
    dtype: Literal["float16", "float32"] | None = option(
        None, "Data type of the embeddings on disk.", shown="float16, for logits float32"
    )
    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto", "Compute dtype of the teacher. auto picks bf16 if the hardware supports it."
    )
    device: str = option("auto", "Device of the teacher: auto, cpu, cuda or cuda:N.")
    devices: str | None = option(None, "Several GPUs of this machine, one process each.", metavar="N,N… | all")
    readers: int | None = option(
        None, "Processes that read and tokenize ahead of a teacher.", shown="1, for a GPU up to 8", least=1
    )
    slice: tuple[int, int] | None = option(
        None,
        "Do only the I-th of N shares, as one of many jobs over one folder; sd shards merge ends the run.",
        parse=parse_share,
        metavar="I/N",
        given=False,
    )
    plan_only: bool = option(
        False, "Make the plan and stop: ahead of many jobs, on a machine without GPU.", given=False
    )
    engine: Literal["local", "ray"] = option(
        "local", "Where slices are embedded: here, or by the actors of a Ray cluster."
    )
    ray_address: str | None = option(None, "Address of a Ray cluster.", shown="a Ray of this machine's own")
    workers: int | None = option(None, "Number of Ray actors.", shown="one a GPU, or one a node", least=1)
    compression: Literal["none", "zstd", "lz4"] = option(
        "none", "Compression of the shards; compressed ones can't be memory-mapped."
    )
    keep_text: bool = option(True, "Keep token ids only, not the sentences.", flags=("--no-text",))

    def __post_init__(self) -> None:
        check(self)
        # Two columns, see `text_columns`.
        object.__setattr__(self, "rules", replace(self.rules, pairs="," in self.text_column))

    def require_consistent(self) -> None:
        """Refuse options that contradict each other, or would be ignored."""
        ray = self.engine == "ray"
        if not self.corpus:
            raise UserError("name a corpus: sd embed --corpus wiki.txt")
        if not ray and (self.ray_address or self.workers):
            raise UserError("--ray-address and --workers go with --engine ray")
        if ray and (self.devices or self.device != "auto"):
            raise UserError("--engine ray takes the cluster's GPUs, or its CPUs; leave --device and --devices out")
        if self.devices and self.device != "auto":
            raise UserError("--device and --devices are two ways to say the same; give one of them")
        if self.slice and "-" in self.corpus:
            raise UserError("many jobs can't read one standard input; give --slice a corpus in files")
        if self.plan_only and self.slice:
            raise UserError("a plan is of the whole corpus; leave --slice out, or --plan-only")
