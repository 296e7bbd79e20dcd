"""Stage one: from a corpus to a folder of shards; what a run does around the work of its engine."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sentence_distill.data import progress
from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.config import MAX_TOKENS, EmbedConfig
from sentence_distill.pipeline.engines import LocalEngine, TeacherSpec, pick_readers
from sentence_distill.pipeline.files import is_local, lock_folder, made_folder, remove_temporaries, write_atomically
from sentence_distill.pipeline.fingerprint import differing_fields, quick_fingerprint, text_fingerprint
from sentence_distill.pipeline.load import Located
from sentence_distill.pipeline.manifest import (
    MANIFEST,
    PLAN,
    PLAN_SIDECAR,
    TOKENIZER,
    WORD_EMBEDDINGS,
    close_folder,
)
from sentence_distill.pipeline.plan import Plan, Slice, make_plan
from sentence_distill.pipeline.shards import read_sidecar, shard_name, shard_problem, sidecar_path
from sentence_distill.pipeline.slices import REJECTED, listed
from sentence_distill.pipeline.teacher import TeacherFacts
from sentence_distill.pipeline.teacher_folder import LOGITS
from sentence_distill.pipeline.work import Job

# No larger batch was faster on a CPU; a GPU needs more to be filled (not measured).
CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 4096, 16_384
SOURCES = "sources.json"
"""Names of the corpus's files, the first few."""
_NAMES = 10


class Engine(Protocol):
    """Decides where slices are embedded; what they yield is the same everywhere."""

    def facts(self) -> TeacherFacts:
        """What the run has to know of the teacher."""

    def run(self, job: Job, todo: Sequence[Slice], advance: Callable[[int], None]) -> None:
        """Commit the shards of `todo`."""


def refuse_teachers_folder(out: Path, located: Located) -> None:
    """Refuse to write into the teacher's own folder, whose tokenizer would be replaced.

    Raises:
        UserError: it is where `out` keeps what stage two needs of the teacher.
    """
    ours = (out / TOKENIZER).parent
    if is_local(out) and ours.exists() and located.folder.exists() and ours.samefile(located.folder):
        raise UserError(f"{ours} is the teacher itself, and a run writes there too; write to another folder with --out")


def make_or_load_plan(corpus: Corpus, config: EmbedConfig, out: Path, *, trusting: bool = False) -> Plan:
    """The plan in `out`, made where there is none of this corpus and these rules; hold the folder's lock.

    Args:
        corpus: what is to be embedded.
        config: the rules, and the sentences of a slice.
        out: folder of the shards.
        trusting: whether a plan's word is taken for the content of files with the same names and sizes.

    Raises:
        UserError: the folder holds shards of another corpus or other rules, or files of others under a run's names.
    """
    plan = Plan.load(out / PLAN)
    if plan is None:
        _refuse_files_of_others(out)
    text = text_fingerprint(corpus, config.rules, config.shard_rows, plan if trusting else None)
    if plan is None or plan.fingerprint != text:
        _refuse_other_runs(out, text, corpus)
        with progress.task("plan", None, "records") as advance:
            plan = make_plan(corpus, config.rules, config.shard_rows, text, advance)
        # First: what vouches for the folder comes last.
        _write_sources(out, corpus)
        plan.save(out / PLAN)
    progress.log(f"plan: {plan.rows:,} sentences in {len(plan.slices):,} slices")
    return plan


def _refuse_files_of_others(out: Path) -> None:
    """Refuse a folder in which no run was yet, and some file has the name of one that a run writes, or removes."""
    # The first that a run writes is its plan; where that was lost, shards show whose the folder is.
    if (out / PLAN).exists() or any(read_sidecar(shard) for shard in out.glob("shard-*.arrow")):
        return
    for name in (MANIFEST, PLAN_SIDECAR, REJECTED, TOKENIZER, WORD_EMBEDDINGS):
        if (out / name).exists():
            raise UserError(
                f"{out / name} is there already and belongs to no run of sd embed; move it, or write to another folder "
                "with --out"
            )


def _write_sources(out: Path, corpus: Corpus) -> None:
    """Keep the names of the corpus's files for messages; no part of the format, whose fingerprint has their hash."""
    names = [source.name for source in corpus.sources]
    shown = {"files": len(names), "names": names[:_NAMES]}
    write_atomically(out / SOURCES, (json.dumps(shown, ensure_ascii=False) + "\n").encode())


def _made_from(out: Path, corpus: Corpus) -> str:
    """Say from which files the shards in `out` were made, and which these are; "" if that is not known."""
    try:
        known = json.loads((out / SOURCES).read_text(encoding="utf-8"))
        old, files = list(known["names"]), int(known["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    new = [source.name for source in corpus.sources]
    if (old, files) == (new[:_NAMES], len(new)):
        return f"{_few(new, len(new))} changed since {out} was made from it"
    return f"{out} was made from {_few(old, files)}; this is {_few(new, len(new))}"


def _few(names: Sequence[str], files: int) -> str:
    return names[0] if files == 1 else f"{names[0]} and {files - 1:,} more"


def refuse_other_corpus(corpus: Corpus, config: EmbedConfig, out: Path) -> None:
    """Refuse a folder with shards of another corpus or other rules, as far as names and sizes tell.

    Raises:
        UserError: it says what differs.
    """
    _refuse_other_runs(out, quick_fingerprint(corpus, config.rules, config.shard_rows), corpus, [])


def _refuse_other_runs(
    out: Path, fingerprint: dict[str, Any], corpus: Corpus, share: Sequence[Slice] | None = None
) -> None:
    """Refuse a folder with shards that differ in a field of `fingerprint`.

    Of a job's `share`, its own shards are compared and one other: whoever made that compared itself with one before it.
    """
    own = None if share is None else {shard_name(part.index) for part in share}
    others = 0
    for shard in sorted(out.glob("shard-*.arrow")):
        is_other = own is not None and shard.name not in own
        if is_other and others:
            continue
        sidecar = read_sidecar(shard)
        if sidecar is None:
            continue
        others += is_other
        old = {field: sidecar["fingerprint"].get(field) for field in fingerprint}
        if differing := differing_fields(old, fingerprint):
            of_corpus = any(old[field] != fingerprint[field] for field in old if field.startswith("corpus_"))
            made_from = _made_from(out, corpus) if of_corpus else ""
            if made_from:
                differing = [made_from, *differing[1:]]
            raise UserError(
                f"{'' if made_from else f'{out} holds shards of another run: '}{'; '.join(differing)}; write to "
                f"another folder with --out{'' if of_corpus else ', or give the options of that run'}"
            )


class EmbedRun:
    """One run of stage one over a folder: plans, embeds what is missing, closes the manifest."""

    def __init__(
        self,
        *,
        corpus: Corpus,
        engine: Engine,
        out: Path,
        config: EmbedConfig,
    ) -> None:
        """Prepare a run.

        Args:
            corpus: what to embed.
            engine: where, and with which teacher.
            out: folder of the shards, see `open_folder`; gone on with where a run stopped.
            config: options.
        """
        self.corpus = corpus
        self.engine = engine
        self.teacher = engine.facts()
        assert corpus.pairs == config.rules.pairs == ("separator" in self.teacher.fingerprint), "all know of pairs"
        if config.max_tokens > self.teacher.max_tokens:
            raise UserError(f"--max-tokens {config.max_tokens}: this teacher takes {self.teacher.max_tokens} at most")
        if self.teacher.note:
            progress.log(f"note: {self.teacher.note}")
        max_tokens = config.max_tokens or min(MAX_TOKENS, self.teacher.max_tokens)
        if max_tokens < (config.max_tokens or MAX_TOKENS):
            progress.log(f"this teacher reads {max_tokens} tokens of a sentence; longer ones are rejected")
        self.out = out
        budget = config.token_budget or (CPU_TOKEN_BUDGET if self.teacher.device == "cpu" else GPU_TOKEN_BUDGET)
        dtype = config.dtype or ("float32" if self.teacher.fingerprint["pooling"] == LOGITS else "float16")
        self.config = replace(config, max_tokens=max_tokens, token_budget=budget, dtype=dtype)

    def run(self) -> dict[str, Any]:
        """Write all shards that are not there yet; return the manifest.

        Raises:
            UserError: the folder is in use, or holds shards of another run, or files of others under a run's names.
        """
        with made_folder(self.out), lock_folder(self.out):
            plan = make_or_load_plan(self.corpus, self.config, self.out)
            remove_temporaries(self.out)
            self._embed(plan, plan.slices)
            # A worker that died on the way, and whose slice another did, has left its unfinished file.
            remove_temporaries(self.out)
            progress.log("closing the folder")
            return close_folder(self.out, plan)

    def run_share(self, number: int, count: int) -> int:
        """Write the shards of the `number`-th of `count` equal shares of the plan, counted from 1.

        Other shares may be at work in the same folder; `close_folder` ends the run when all are there. The
        first to come makes the plan. Return how many shards the share has.

        Raises:
            UserError: a whole run or the same share is at work here, or the folder holds shards of another run.
        """
        own = lock_folder(self.out, name=f".lock-{number}-of-{count}")
        with made_folder(self.out), lock_folder(self.out, shared=True), own:
            with lock_folder(self.out, name=".lock-plan", wait=True):
                plan = make_or_load_plan(self.corpus, self.config, self.out, trusting=True)
            size = len(plan.slices)
            share = plan.slices[size * (number - 1) // count : size * number // count]
            self._embed(plan, share)
            return len(share)

    def _fingerprint(self, plan: Plan) -> dict[str, Any]:
        return {
            **plan.fingerprint,
            **self.teacher.fingerprint,
            "plan": plan.hash,
            "dim": self.teacher.dim,
            "vocabulary": self.teacher.vocabulary,
            "max_tokens": self.config.max_tokens,
            "token_budget": self.config.token_budget,
            "dtype": self.config.dtype,
            "keep_text": self.config.keep_text,
            "compression": self.config.compression or "none",
        }

    def _missing(self, share: Sequence[Slice], fingerprint: dict[str, Any]) -> list[Slice]:
        _refuse_other_runs(self.out, fingerprint, self.corpus, share)
        lists = listed(self.out, [part.index for part in share])
        todo = []
        for part in share:
            shard = self.out / shard_name(part.index)
            sidecar = read_sidecar(shard)
            if sidecar is None:
                todo.append(part)
                continue
            # In an object store, sizes only: sd shards verify reads all of it.
            problem = shard_problem(shard, sidecar, whole=is_local(shard))
            if not problem and sidecar["rejected_xxh3_128"] not in lists[part.index]:
                problem = "has lost its list of rejected sentences"
            if problem:
                progress.log(f"{shard.name} {problem}; it is made again")
                # From here on, a sidecar says that the slice is done.
                sidecar_path(shard).unlink()
                todo.append(part)
        return todo

    def _write_assets(self) -> None:
        """What stage two needs of the teacher, so that it never has to load it."""
        if is_local(self.out):
            (self.out / TOKENIZER).parent.mkdir(exist_ok=True)
        for name, content in (
            (TOKENIZER, self.teacher.tokenizer_json.encode()),
            (WORD_EMBEDDINGS, self.teacher.word_embeddings),
        ):
            path = self.out / name
            if not path.exists() or path.read_bytes() != content:
                write_atomically(path, content)

    def _embed(self, plan: Plan, share: Sequence[Slice]) -> None:
        fingerprint = self._fingerprint(plan)
        todo = self._missing(share, fingerprint)
        self._write_assets()
        if not todo:
            return
        # Without its manifest the folder does not claim to be complete while a shard is made again.
        (self.out / MANIFEST).unlink(missing_ok=True)
        job = Job(self.corpus, self.config, self.out, fingerprint)
        total = sum(part.sentences - len(part.duplicates) for part in todo)
        with progress.task("embed", total, "sentences") as advance:
            self.engine.run(job, todo, advance)
        if undone := [part for part in todo if read_sidecar(self.out / shard_name(part.index)) is None]:
            raise UserError(
                f"{len(undone)} of {len(todo)} slices were not done, the first is {undone[0].index}; "
                "run the same command again to resume"
            )


def embed_corpus(
    *,
    corpus: Corpus,
    located: Located,
    out: Path,
    config: EmbedConfig,
    pooling: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Embed a corpus in this process, as `sd embed` does on one device; a run that was stopped goes on.

    Args:
        corpus: what to embed; with two text fields it is one of pairs.
        located: the teacher, see `locate_teacher`.
        out: folder of the shards.
        config: options; whether records are pairs is the corpus's to say.
        pooling: see `Teacher.load`.
        device: see `pick_device`.
        precision: see `pick_precision`.

    Returns:
        The manifest.

    Raises:
        UserError: the corpus or teacher can't be used, or the folder is in use or holds shards of another run.
    """
    refuse_teachers_folder(out, located)
    spec = TeacherSpec(located=located, pooling=pooling, precision=precision, pairs=corpus.pairs)
    teacher = spec.load(device)
    run = EmbedRun(
        corpus=corpus,
        engine=LocalEngine(teacher, pick_readers([str(teacher.device)])),
        out=out,
        config=replace(config, rules=replace(config.rules, pairs=corpus.pairs)),
    )
    return run.run()
