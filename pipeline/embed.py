"""Stage one: from a corpus to a folder of shards."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from sentence_distill.data import progress
from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.options import command_line, configured
from sentence_distill.data.sources import standard_input
from sentence_distill.pipeline.config import HUB_PREFIX, MAX_TOKENS, EmbedConfig
from sentence_distill.pipeline.engines import Engine, open_engine
from sentence_distill.pipeline.files import (
    is_local,
    lock_folder,
    made_folder,
    open_folder,
    remove_temporaries,
    write_atomically,
)
from sentence_distill.pipeline.load import Located, locate_teacher
from sentence_distill.pipeline.manifest import close_folder
from sentence_distill.pipeline.plan import (
    Plan,
    Slice,
    make_plan,
    quick_fingerprint,
    require_utf8_names,
    text_fingerprint,
)
from sentence_distill.pipeline.records import (
    MANIFEST,
    PLAN,
    PLAN_SIDECAR,
    REJECTED,
    TOKENIZER,
    WORD_EMBEDDINGS,
    Fingerprint,
    Manifest,
    Sources,
    as_dict,
    differing_fields,
    read_sources,
    write_sources,
)
from sentence_distill.pipeline.shards import listed, read_sidecar, shard_name, shard_problem, sidecar_path
from sentence_distill.pipeline.slices import Job
from sentence_distill.pipeline.spool import spool_hub_dataset, spool_stream
from sentence_distill.pipeline.teacher_folder import LOGITS

# No larger batch was faster on a CPU; a GPU needs more to be filled (not measured).
CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 4096, 16_384
_NAMES = 10


def embed(config: EmbedConfig | None = None, /, **options: Any) -> Manifest | Plan:
    """Run the teacher over a corpus and write its embeddings, or logits, to sharded Arrow files.

    A run that was stopped is resumed. `embed(corpus="wiki.txt", out="shards")` does what
    `sd embed --corpus wiki.txt --out shards` does.

    Args:
        config: all options; or give those of its fields that differ from the defaults.
        **options: fields of `EmbedConfig` and its `SentenceRules`.

    Returns:
        The manifest; the plan of a run with `plan_only` or `slice`, which does not end with one.

    Raises:
        UserError: the corpus, teacher or folder can't be used, or the folder holds shards of another run.
    """
    config = configured(EmbedConfig, config, options)
    config.require_consistent()
    out = open_folder(config.out)
    settings: dict[str, Any] = {"format": config.input_format, "text_column": config.text_column, "leave_out": out}
    settings["log"] = progress.log
    # Cheap mistakes first: a wrong path, column or folder shows before any weights are loaded.
    copied = [name for name in config.corpus if _is_copied(name)]
    if paths := [name for name in config.corpus if not _is_copied(name)]:
        corpus = Corpus.open(paths, **settings)
        _check_corpus(corpus)
    if not copied:
        _refuse_other_runs(out, quick_fingerprint(corpus, config.rules, config.shard_rows), corpus, [])
    located = None if config.plan_only else locate_teacher(config.teacher)
    if copied:
        corpus = Corpus.open([_copy(name, config, out) for name in config.corpus], **settings)
        _check_corpus(corpus)
        _refuse_other_runs(out, quick_fingerprint(corpus, config.rules, config.shard_rows), corpus, [])
    if located is None:
        with made_folder(out), lock_folder(out):
            return make_or_load_plan(corpus, config, out)
    return embed_corpus(corpus=corpus, located=located, config=config, out=out)


def embed_corpus(*, corpus: Corpus, located: Located, config: EmbedConfig, out: Path | None = None) -> Manifest | Plan:
    """Embed a corpus that is open with a teacher that is at hand; otherwise the same as `embed`."""
    out = out or open_folder(config.out)
    ours = (out / TOKENIZER).parent
    if is_local(out) and ours.exists() and located.folder.exists() and ours.samefile(located.folder):
        raise UserError(f"{ours} is the teacher itself, and a run writes there too; write to another folder with --out")
    progress.log(f"loading teacher {located.name}")
    with open_engine(located, config, corpus.pairs) as engine:
        run = EmbedRun(corpus=corpus, engine=engine, out=out, config=config)
        progress.log(str(run.teacher))
        result = run.run() if config.slice is None else run.run_share(*config.slice)
    if run.teacher.note:
        # Said before the work too; here nobody overlooks it.
        progress.log(f"note: {run.teacher.note}")
    return result


def _is_copied(name: str) -> bool:
    return name == "-" or name.startswith(HUB_PREFIX)


def _copy(name: str, config: EmbedConfig, out: Path) -> str:
    """Copy standard input or a dataset of the hub next to the shards, so that it can be read twice."""
    if not _is_copied(name):
        return name
    if not is_local(out):
        raise UserError(f"--corpus {name} is copied next to the shards first, which needs a local --out")
    if name == "-":
        return str(spool_stream(standard_input(), out / "corpus"))
    return str(spool_hub_dataset(name.removeprefix(HUB_PREFIX), config.text_column, out / "corpus"))


def _check_corpus(corpus: Corpus) -> None:
    require_utf8_names(corpus.sources)
    corpus.check()


def make_or_load_plan(corpus: Corpus, config: EmbedConfig, out: Path, *, trusting: bool = False) -> Plan:
    """Load the plan in `out`, or make it if there is none of this corpus and these rules; hold the folder's lock.

    Args:
        corpus: what is to be embedded.
        config: the rules, and the sentences of a slice.
        out: folder of the shards.
        trusting: trust a plan for the content of files with the same names and sizes.

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
        write_sources(out, _sources(corpus, config))
        plan.save(out / PLAN)
    progress.log(f"plan: {plan.rows:,} sentences in {len(plan.slices):,} slices")
    return plan


def _refuse_files_of_others(out: Path) -> None:
    """Refuse a folder in which no run was yet, and some file has the name of one that a run writes, or removes."""
    # The first that a run writes is its plan; if that was lost, shards show whose the folder is.
    if (out / PLAN).exists() or any(read_sidecar(shard) for shard in out.glob("shard-*.arrow")):
        return
    for name in (MANIFEST, PLAN_SIDECAR, REJECTED, TOKENIZER, WORD_EMBEDDINGS):
        if (out / name).exists():
            raise UserError(
                f"{out / name} is there already and belongs to no run of sd embed; move it, or write to another folder "
                "with --out"
            )


def _sources(corpus: Corpus, config: EmbedConfig) -> Sources:
    names = [source.name for source in corpus.sources]
    return Sources(files=len(names), names=names[:_NAMES], command=command_line("embed", config))


def _made_from(out: Path, corpus: Corpus) -> str:
    """Say from which files the shards in `out` were made, and which these are; "" if that is not known."""

    def few(names: Sequence[str], files: int) -> str:
        return names[0] if files == 1 else f"{names[0]} and {files - 1:,} more"

    known, new = read_sources(out), [source.name for source in corpus.sources]
    if known is None:
        return ""
    if (known.names, known.files) == (new[:_NAMES], len(new)):
        return f"{few(new, len(new))} changed since {out} was made from it"
    return f"{out} was made from {few(known.names, known.files)}; this is {few(new, len(new))}"


def _refuse_other_runs(out: Path, fields: dict[str, Any], corpus: Corpus, share: Sequence[Slice] | None = None) -> None:
    """Refuse a folder with shards whose fingerprint differs in one of `fields`.

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
        known = as_dict(sidecar.fingerprint)
        old = {field: known.get(field) for field in fields}
        if differing := differing_fields(old, fields):
            of_corpus = any(old[field] != fields[field] for field in old if field.startswith("corpus_"))
            made_from = _made_from(out, corpus) if of_corpus else ""
            if made_from:
                differing = [made_from, *differing[1:]]
            raise UserError(
                f"{'' if made_from else f'{out} holds shards of another run: '}{'; '.join(differing)}; write to "
                f"another folder with --out{'' if of_corpus else ', or give the options of that run'}"
            )


class EmbedRun:
    """One run of stage one over a folder: plans, embeds what is missing, closes the manifest."""

    def __init__(self, *, corpus: Corpus, engine: Engine, out: Path, config: EmbedConfig) -> None:
        """Decide what `config` leaves open.

        Raises:
            UserError: the teacher does not take so many tokens.
        """
        self.corpus, self.engine, self.out = corpus, engine, out
        self.teacher = engine.facts()
        most = self.teacher.max_tokens
        if (config.max_tokens or 0) > most:
            raise UserError(f"--max-tokens {config.max_tokens}: this teacher takes {most} at most")
        if self.teacher.note:
            progress.log(f"note: {self.teacher.note}")
        max_tokens = config.max_tokens or min(MAX_TOKENS, most)
        if max_tokens < (config.max_tokens or MAX_TOKENS):
            progress.log(f"this teacher reads {max_tokens} tokens of a sentence; longer ones are rejected")
        # As it was given, for the command that is recorded; whether records are pairs is the corpus's to say.
        self.given = replace(config, text_column=corpus.text_column)
        self.config = replace(
            self.given,
            max_tokens=max_tokens,
            token_budget=config.token_budget
            or (CPU_TOKEN_BUDGET if self.teacher.device == "cpu" else GPU_TOKEN_BUDGET),
            dtype=config.dtype or ("float32" if self.teacher.fingerprint.pooling == LOGITS else "float16"),
        )

    def run(self) -> Manifest:
        """Write all shards that are not there yet; return the manifest.

        Raises:
            UserError: the folder is in use, or holds shards of another run, or files of others under a run's names.
        """
        with made_folder(self.out), lock_folder(self.out):
            plan = make_or_load_plan(self.corpus, self.given, self.out)
            remove_temporaries(self.out)
            self._embed(plan, plan.slices)
            # A worker that died on the way, and whose slice another did, has left its unfinished file.
            remove_temporaries(self.out)
            progress.log("closing the folder")
            return close_folder(self.out, plan)

    def run_share(self, number: int, count: int) -> Plan:
        """Write the shards of the `number`-th of `count` equal shares of the plan, counted from 1; return the plan.

        Other shares may be at work in the same folder; `close_folder` ends the run when all are there. The
        first to come makes the plan.

        Raises:
            UserError: a whole run or the same share is at work here, or the folder holds shards of another run.
        """
        own = lock_folder(self.out, name=f".lock-{number}-of-{count}")
        with made_folder(self.out), lock_folder(self.out, shared=True), own:
            with lock_folder(self.out, name=".lock-plan", wait=True):
                plan = make_or_load_plan(self.corpus, self.given, self.out, trusting=True)
            self._embed(plan, plan.share(number, count))
            return plan

    def job(self, plan: Plan) -> Job:
        """Return what the slices of this run have in common."""
        config = self.config
        fields = {
            **plan.fingerprint,
            **as_dict(self.teacher.fingerprint),
            "plan": plan.hash,
            "dim": self.teacher.dim,
            "vocabulary": self.teacher.vocabulary,
            **{name: getattr(config, name) for name in ("max_tokens", "token_budget", "dtype")},
            **{name: getattr(config, name) for name in ("keep_text", "compression")},
        }
        return Job(self.corpus, config, self.out, msgspec.convert(fields, Fingerprint))

    def _embed(self, plan: Plan, share: Sequence[Slice]) -> None:
        job = self.job(plan)
        _refuse_other_runs(self.out, as_dict(job.fingerprint), self.corpus, share)
        todo = self._missing(share)
        # What stage two needs of the teacher, so that it never has to load it.
        if is_local(self.out):
            (self.out / TOKENIZER).parent.mkdir(exist_ok=True)
        tokenizer = self.teacher.tokenizer_json.encode()
        for name, content in ((TOKENIZER, tokenizer), (WORD_EMBEDDINGS, self.teacher.word_embeddings)):
            if not (self.out / name).exists() or (self.out / name).read_bytes() != content:
                write_atomically(self.out / name, content)
        if not todo:
            return
        if read_sources(self.out) != (sources := _sources(self.corpus, self.given)):
            # The plan may be from a run without a teacher.
            write_sources(self.out, sources)
        # Without its manifest the folder does not claim to be complete while a shard is made again.
        (self.out / MANIFEST).unlink(missing_ok=True)
        with progress.task("embed", sum(part.rows for part in todo), "sentences") as advance:
            self.engine.run(job, todo, advance)
        if undone := [part for part in todo if read_sidecar(self.out / shard_name(part.index)) is None]:
            raise UserError(
                f"{len(undone)} of {len(todo)} slices were not done, the first is {undone[0].index}; "
                "run the same command again to resume"
            )

    def _missing(self, share: Sequence[Slice]) -> list[Slice]:
        """Return the slices whose shards are missing or damaged."""
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
            if not problem and sidecar.rejected_xxh3_128 not in lists[part.index]:
                problem = "has lost its list of rejected sentences"
            if problem:
                progress.log(f"{shard.name} {problem}; it is rebuilt")
                # From here on, a sidecar says that the slice is done.
                sidecar_path(shard).unlink()
                todo.append(part)
        return todo
