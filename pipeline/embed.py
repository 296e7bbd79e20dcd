"""Stage one: from a corpus to shards, one slice after the other, each committed as soon as it is done."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_safetensors

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Progress
from sentence_distill.data.records import Record
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.pipeline.files import remove_temporaries, write_atomically
from sentence_distill.pipeline.fingerprint import differing_fields, text_fingerprint
from sentence_distill.pipeline.lock import lock_folder
from sentence_distill.pipeline.manifest import (
    MANIFEST,
    PLAN,
    TOKENIZER,
    WORD_EMBEDDINGS,
    write_manifest,
)
from sentence_distill.pipeline.plan import Plan, Slice, make_plan
from sentence_distill.pipeline.rejected import join_lists, listed, remove_lists, write_list
from sentence_distill.pipeline.shards import read_sidecar, shard_name, shard_problem, write_shard
from sentence_distill.pipeline.slices import embed_slice, read_slice
from sentence_distill.pipeline.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Options of a run that its output depends on."""

    rules: SentenceRules
    """What becomes a sentence."""
    shard_rows: int = 16_384
    """Sentences of a slice; a shard holds at most slightly more rows. A kill loses at most one shard's work."""
    max_tokens: int = 128
    """Sentences with more tokens, special tokens not counted, are rejected."""
    token_budget: int = 4096
    """Tokens of a teacher's batch."""
    dtype: str = "float16"
    """Of the embeddings on disk, "float16" or "float32"."""
    keep_text: bool = True
    """Whether the shards carry the sentences."""
    compression: str | None = None
    """Of the shards' buffers: None, "zstd" or "lz4"; compressed shards can't be memory-mapped."""


class EmbedRun:
    """One run of stage one over a folder: plans, embeds what is missing, closes the manifest."""

    def __init__(
        self,
        *,
        corpus: Corpus,
        teacher: Teacher,
        out: Path,
        config: EmbedConfig,
        notice: str,
        progress: Progress,
    ) -> None:
        """Prepare a run.

        Args:
            corpus: what to embed.
            teacher: with what.
            out: folder of the shards; made where it is missing, gone on with where a run stopped.
            config: options.
            notice: why another teacher than the one asked for is used, or "".
            progress: where to report.
        """
        if config.max_tokens > teacher.max_tokens:
            raise UserError(f"--max-tokens {config.max_tokens}: this teacher takes {teacher.max_tokens} at most")
        self.corpus = corpus
        self.teacher = teacher
        self.out = out
        self.config = config
        self.notice = notice
        self.progress = progress

    def run(self) -> dict[str, Any]:
        """Write all shards that are not there yet; return the manifest.

        Raises:
            UserError: the folder is in use, or holds shards of another run.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.out):
            remove_temporaries(self.out)
            text = text_fingerprint(self.corpus, self.config.rules, self.config.shard_rows)
            plan = self._plan(text)
            fingerprint = self._fingerprint(text, plan)
            todo = self._missing(plan, fingerprint)
            self._write_assets()
            if todo:
                # Without its manifest the folder does not claim to be complete while a shard is made again.
                (self.out / MANIFEST).unlink(missing_ok=True)
                self._embed(todo, fingerprint)
            join_lists(self.out, len(plan.slices))
            manifest = write_manifest(self.out, fingerprint, len(plan.slices), self.notice)
            remove_lists(self.out)
            return manifest

    def _plan(self, text: dict[str, Any]) -> Plan:
        path = self.out / PLAN
        if (plan := Plan.load(path)) is None or plan.fingerprint != text:
            self._refuse_other_runs(text)
            with self.progress.task("plan", None, "records") as advance:
                plan = make_plan(self.corpus, self.config.rules, self.config.shard_rows, text, advance)
            plan.save(path)
        self.progress.log(f"plan: {plan.rows:,} sentences in {len(plan.slices):,} slices")
        return plan

    def _fingerprint(self, text: dict[str, Any], plan: Plan) -> dict[str, Any]:
        return {
            **text,
            **self.teacher.fingerprint(),
            "plan": plan.hash,
            "dim": self.teacher.dim,
            "vocabulary": self.teacher.vocabulary_size,
            "max_tokens": self.config.max_tokens,
            "token_budget": self.config.token_budget,
            "dtype": self.config.dtype,
            "keep_text": self.config.keep_text,
            "compression": self.config.compression or "none",
        }

    def _refuse_other_runs(self, fingerprint: dict[str, Any]) -> None:
        """Refuse a folder with shards that differ in a field of `fingerprint`."""
        for shard in sorted(self.out.glob("shard-*.arrow")):
            sidecar = read_sidecar(shard)
            if sidecar is None:
                continue
            old = {field: sidecar["fingerprint"].get(field) for field in fingerprint}
            if differing := differing_fields(old, fingerprint):
                raise UserError(
                    f"{self.out} holds shards of another run, which differs in {'; '.join(differing)}; "
                    "run with the options of that run, or write to another folder with --out"
                )

    def _missing(self, plan: Plan, fingerprint: dict[str, Any]) -> list[Slice]:
        self._refuse_other_runs(fingerprint)
        lists = listed(self.out, len(plan.slices))
        todo = []
        for part in plan.slices:
            shard = self.out / shard_name(part.index)
            sidecar = read_sidecar(shard)
            if sidecar is None:
                todo.append(part)
                continue
            problem = shard_problem(shard, sidecar)
            if not problem and sidecar["rejected_xxh3_128"] not in lists[part.index]:
                problem = "has lost its list of rejected sentences"
            if problem:
                self.progress.log(f"{shard.name} {problem}; it is made again")
                todo.append(part)
        return todo

    def _write_assets(self) -> None:
        """What stage two needs of the teacher, so that it never has to load it."""
        (self.out / TOKENIZER).parent.mkdir(exist_ok=True)
        table = self.teacher.word_embeddings().half().contiguous()
        for name, content in (
            (TOKENIZER, self.teacher.tokenizer_json().encode()),
            (WORD_EMBEDDINGS, save_safetensors({"weight": table})),
        ):
            path = self.out / name
            if not path.exists() or path.read_bytes() != content:
                write_atomically(path, content)

    def _embed(self, todo: list[Slice], fingerprint: dict[str, Any]) -> None:
        total = sum(part.sentences - len(part.duplicates) for part in todo)
        with self.progress.task("embed", total, "sentences") as advance:
            for part, records in self._read(todo):
                text = read_slice(records, part, self.config.rules)
                rows = embed_slice(
                    text,
                    self.teacher,
                    max_tokens=self.config.max_tokens,
                    token_budget=self.config.token_budget,
                    dtype=self.config.dtype,
                    keep_text=self.config.keep_text,
                    advance=advance,
                )
                # Before the sidecar, so that a shard that exists always has its list.
                rejected = write_list(self.out, part.index, text.rejections, self.corpus.sources)
                start = part.start
                write_shard(
                    self.out / shard_name(part.index),
                    rows.table(self.teacher.vocabulary_size),
                    self.config.compression,
                    {
                        "source": {"file": start.file, "record": start.record, "offset": start.offset},
                        "counts": text.counts(),
                        "rejected_xxh3_128": rejected,
                        "fingerprint": fingerprint,
                    },
                )

    def _read(self, todo: list[Slice]) -> Iterator[tuple[Slice, Iterator[Record]]]:
        """Each slice with its records; neighbours share one pass over the corpus."""
        records: Iterator[Record] = iter(())
        following = -1
        for part in todo:
            if part.index != following:
                records = self.corpus.records(part.start)
            yield part, islice(records, part.records)
            following = part.index + 1
