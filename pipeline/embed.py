"""Stage one, `sd embed`: from a corpus to a folder of shards."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import xxhash

from sentence_distill.data import progress
from sentence_distill.data.corpus import Corpus, text_columns
from sentence_distill.data.errors import UserError
from sentence_distill.data.hub import HubUnreachable, ask_hub
from sentence_distill.data.options import command_line, configured
from sentence_distill.data.progress import counted
from sentence_distill.data.sources import standard_input
from sentence_distill.pipeline.config import HUB_PREFIX, MAX_TOKENS, EmbedConfig
from sentence_distill.pipeline.engines import Engine, open_engine
from sentence_distill.pipeline.files import (
    TEMPORARY,
    is_local,
    library_errors,
    lock_folder,
    made_folder,
    open_folder,
    remove_temporaries,
    replacing,
    write_atomically,
)
from sentence_distill.pipeline.load import Located, locate_teacher
from sentence_distill.pipeline.manifest import close_folder, require_current_format
from sentence_distill.pipeline.plan import Plan, Slice, make_plan, quick_fingerprint, text_fingerprint
from sentence_distill.pipeline.records import (
    MANIFEST,
    PLAN,
    PLAN_SIDECAR,
    REJECTED,
    SOURCES,
    TOKENIZER,
    WORD_EMBEDDINGS,
    Fingerprint,
    Manifest,
    Sources,
    as_dict,
    differing_fields,
    read_sources,
)
from sentence_distill.pipeline.shards import read_lists, read_sidecar, shard_name, shard_problem, sidecar_path
from sentence_distill.pipeline.slices import Job
from sentence_distill.pipeline.teacher_folder import LOGITS

# On a CPU, larger batches were not faster; a GPU needs larger ones to be busy (not measured).
CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 4096, 16_384
_NAMES = 10


def embed(config: EmbedConfig | None = None, /, **options: Any) -> Manifest | Plan:
    """Run the teacher over a corpus and write its embeddings, or logits, to sharded Arrow files.

    A stopped run is resumed. `embed(corpus="wiki.txt", out="shards")` is the same as
    `sd embed --corpus wiki.txt --out shards`.

    Args:
        config: all options; alternatively, pass fields as keyword arguments.
        **options: fields of `EmbedConfig` and its `SentenceRules`.

    Returns:
        The manifest; for a run with `plan_only` or `slice`, which writes no manifest, the plan.

    Raises:
        UserError: the corpus, teacher or folder can't be used, or the folder holds shards of another run.
    """
    config = configured(EmbedConfig, config, options)
    config.require_consistent()
    out = open_folder(config.out)

    copied = [name for name in config.corpus if name == "-" or name.startswith(HUB_PREFIX)]
    paths = [name for name in config.corpus if name not in copied]

    def opened(locations: Sequence[str], *, whole: bool) -> Corpus:
        given: dict[str, Any] = {"format": config.input_format, "text_column": config.text_column}
        corpus = Corpus.open(locations, leave_out=out, log=progress.log, **given)
        text = quick_fingerprint(corpus, config.rules, config.shard_rows)
        corpus.check()
        if whole:
            _refuse_other_runs(out, text, corpus, [])
        return corpus

    # Cheap checks first: a wrong path, column or folder is reported before any weights are loaded.
    if paths:
        corpus = opened(paths, whole=not copied)
    located = None if config.plan_only else locate_teacher(config.teacher)
    if copied:
        corpus = opened([_copy(name, config, out) if name in copied else name for name in config.corpus], whole=True)
    if located is None:
        with made_folder(out), lock_folder(out):
            return _make_or_load_plan(corpus, config, out)
    return embed_corpus(corpus=corpus, located=located, config=config)


def embed_corpus(*, corpus: Corpus, located: Located, config: EmbedConfig) -> Manifest | Plan:
    """Embed an opened corpus with a teacher that has been located; see `embed`."""
    out = open_folder(config.out)
    ours = (out / TOKENIZER).parent
    if is_local(out) and ours.exists() and located.folder.exists() and ours.samefile(located.folder):
        raise UserError(f"{ours} is the teacher itself, and the run would write there; name another --out")
    progress.log(f"loading teacher {located.name}")
    with open_engine(located, config, corpus.pairs) as engine:
        run = EmbedRun(corpus=corpus, engine=engine, out=out, config=config)
        progress.log(str(run.teacher))
        result = run.run() if config.slice is None else run.run_share(*config.slice)
    if run.teacher.note:
        # Repeated at the end, where it is not overlooked.
        progress.log(f"note: {run.teacher.note}")
    return result


class EmbedRun:
    """A run of stage one: make the plan, embed the missing slices, write the manifest."""

    def __init__(self, *, corpus: Corpus, engine: Engine, out: Path, config: EmbedConfig) -> None:
        """Resolve the options that `config` leaves open."""
        self.corpus, self.engine, self.out = corpus, engine, out
        self.teacher = engine.facts()
        most = self.teacher.max_tokens
        if (config.max_tokens or 0) > most:
            raise UserError(f"--max-tokens {config.max_tokens}: this teacher reads at most {most}")
        if self.teacher.note:
            progress.log(f"note: {self.teacher.note}")
        max_tokens = config.max_tokens or min(MAX_TOKENS, most)
        if max_tokens < (config.max_tokens or MAX_TOKENS):
            progress.log(f"this teacher reads at most {counted(max_tokens, 'token')}; longer sentences are rejected")
        # The text column of the corpus decides whether records are pairs.
        self.config = replace(config, text_column=corpus.text_column)
        token_budget = CPU_TOKEN_BUDGET if self.teacher.device == "cpu" else GPU_TOKEN_BUDGET
        self._decided = {
            "max_tokens": max_tokens,
            "token_budget": config.token_budget or token_budget,
            "dtype": config.dtype or ("float32" if self.teacher.fingerprint.pooling == LOGITS else "float16"),
        }

    def run(self) -> Manifest:
        """Write all missing shards; return the manifest."""
        with made_folder(self.out), lock_folder(self.out):
            plan = _make_or_load_plan(self.corpus, self.config, self.out)
            remove_temporaries(self.out)
            self._embed(plan, plan.slices)
            # A worker that died may have left an unfinished file, even if another one has done its slice.
            remove_temporaries(self.out)
            progress.log("closing the folder")
            return close_folder(self.out, plan)

    def run_share(self, number: int, count: int) -> Plan:
        """Write the shards of share `number` of `count`, counted from 1; return the plan.

        Jobs for other shares may work in the same folder at the same time. The first job makes the plan, and
        `close_folder` completes the folder when all shards are written.
        """
        own = lock_folder(self.out, name=f".lock-{number}-of-{count}")
        with made_folder(self.out), lock_folder(self.out, shared=True), own:
            with lock_folder(self.out, name=".lock-plan", wait=True):
                plan = _make_or_load_plan(self.corpus, self.config, self.out, trusting=True)
            self._embed(plan, plan.share(number, count))
            return plan

    def job(self, plan: Plan) -> Job:
        """Return the `Job` that all slices of this run belong to."""
        fields = {
            **plan.fingerprint,
            **as_dict(self.teacher.fingerprint),
            **self._decided,
            "corpora": list(self.corpus.names),
            "plan": plan.hash,
            "dim": self.teacher.dim,
            "vocabulary": self.teacher.vocabulary,
            "keep_text": self.config.keep_text,
            "compression": self.config.compression,
        }
        return Job(self.corpus, self.config.rules, self.out, msgspec.convert(fields, Fingerprint))

    def _embed(self, plan: Plan, share: Sequence[Slice]) -> None:
        job = self.job(plan)
        # What a fingerprint leaves out, logits for one, must be left out there too.
        fields = dict.fromkeys(Fingerprint.__struct_fields__) | as_dict(job.fingerprint)
        _refuse_other_runs(self.out, fields, self.corpus, share)
        todo = self._missing(share)
        # Stage two needs the teacher's tokenizer and word embeddings, so that it never has to load the teacher.
        if is_local(self.out):
            (self.out / TOKENIZER).parent.mkdir(exist_ok=True)
        tokenizer = self.teacher.tokenizer_json.encode()
        for name, content in ((TOKENIZER, tokenizer), (WORD_EMBEDDINGS, self.teacher.word_embeddings)):
            if not (self.out / name).exists() or (self.out / name).read_bytes() != content:
                write_atomically(self.out / name, content)
        if not todo:
            return
        # The plan may come from a --plan-only run with another command line.
        _write_sources(self.out, self.corpus, self.config)
        # A folder without a manifest is incomplete, as this one is while shards are rebuilt.
        (self.out / MANIFEST).unlink(missing_ok=True)
        with progress.task("embed", sum(part.rows for part in todo), "sentences") as advance:
            self.engine.run(job, todo, advance)
        if undone := [part for part in todo if read_sidecar(self.out / shard_name(part.index)) is None]:
            raise UserError(
                f"{len(undone)} of {counted(len(todo), 'slice')} not done, the first is {undone[0].index}; "
                "run the same command again to resume"
            )

    def _missing(self, share: Sequence[Slice]) -> list[Slice]:
        """Return the slices whose shards are missing or damaged."""
        found = [(part, read_sidecar(self.out / shard_name(part.index))) for part in share]
        known = ((part.index, sidecar.rejected_xxh3_128) for part, sidecar in found if sidecar is not None)
        lists = read_lists(self.out, known)
        todo = []
        for part, sidecar in found:
            shard = self.out / shard_name(part.index)
            if sidecar is None:
                todo.append(part)
                continue
            rejected = next(lists)
            # In an object store only sizes are compared; sd shards verify reads everything.
            problem = shard_problem(shard, sidecar, whole=is_local(shard))
            if not problem and rejected is None:
                problem = "has lost its list of rejected sentences"
            if problem:
                progress.log(f"rebuilding {shard.name}: it {problem}")
                # The engines take a slice with a sidecar for done.
                sidecar_path(shard).unlink()
                todo.append(part)
        return todo


def _make_or_load_plan(corpus: Corpus, config: EmbedConfig, out: Path, *, trusting: bool = False) -> Plan:
    """Load the plan in `out`, or make one if it is not of this corpus and these rules; the folder must be locked.

    With `trusting`, files with the same names and sizes as in an existing plan are not read to compare their content.
    """
    plan = Plan.load(out / PLAN)
    # A run writes its plan first. If the plan is lost, shards still show that the folder belongs to a run.
    if plan is None and not (out / PLAN).exists() and not any(map(read_sidecar, out.glob("shard-*.arrow"))):
        for name in (MANIFEST, PLAN_SIDECAR, REJECTED, TOKENIZER, WORD_EMBEDDINGS):
            if (out / name).exists():
                raise UserError(
                    f"{out / name} already exists and belongs to no run of sd embed; move it, or write to another "
                    "folder with --out"
                )
    text = text_fingerprint(corpus, config.rules, config.shard_rows, plan if trusting else None)
    if plan is None or plan.fingerprint != text:
        _refuse_other_runs(out, text, corpus)
        with progress.task("plan", None, "records") as advance:
            plan = make_plan(corpus, config.rules, config.shard_rows, text, advance)
        # Before the plan, whose sidecar marks the folder as one of this corpus.
        _write_sources(out, corpus, config)
        plan.save(out / PLAN)
    progress.log(f"plan: {counted(plan.rows, 'sentence')} in {counted(len(plan.slices), 'slice')}")
    return plan


def _write_sources(out: Path, corpus: Corpus, config: EmbedConfig) -> None:
    """Write sources.json, for people to read: the format itself has only a hash of the names."""
    names = [source.name for source in corpus.sources]
    sources = Sources(files=len(names), names=names[:_NAMES], command=command_line("embed", config))
    write_atomically(out / SOURCES, msgspec.json.encode(sources) + b"\n")


def _made_from(out: Path, corpus: Corpus) -> str:
    """Describe how the files of the shards in `out` differ from these; "" if they are not known."""

    def few(names: Sequence[str], files: int) -> str:
        return names[0] if files == 1 else f"{names[0]} and {files - 1:,} more"

    new = [source.name for source in corpus.sources]
    if (known := read_sources(out)) is None:
        return ""
    if (known.names, known.files) == (new[:_NAMES], len(new)):
        return f"{few(new, len(new))} changed since {out} was made from it"
    return f"{out} was made from {few(known.names, known.files)}; this is {few(new, len(new))}"


def _refuse_other_runs(out: Path, fields: dict[str, Any], corpus: Corpus, share: Sequence[Slice] | None = None) -> None:
    """Refuse a folder with shards whose fingerprint differs in one of `fields`.

    A job compares the shards of its `share` and a single other one, whose own job has compared it in the same way.
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
        require_current_format(out, sidecar)
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


# Copies of corpora that can be read only once: standard input, and datasets streamed from the hub. A run reads its
# corpus twice, to plan and to embed, and again when it resumes.


def _copy(name: str, config: EmbedConfig, out: Path) -> str:
    if not is_local(out):
        raise UserError(f"--corpus {name} is first copied to --out, which must be a local folder")
    if name == "-":
        return str(copy_stream(standard_input(), out / "corpus"))
    return str(copy_hub_dataset(name.removeprefix(HUB_PREFIX), config.text_column, out / "corpus"))


def copy_stream(stream: BinaryIO, folder: Path) -> Path:
    """Copy `stream` into `folder`, compressed, and return the file, named by the hash of its content."""
    digest = xxhash.xxh3_64()

    def chunks() -> Iterator[bytes]:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            yield chunk

    with _held(folder):
        _compress(chunks(), folder / "stdin.zst")
        return (folder / "stdin.zst").replace(folder / f"stdin-{digest.hexdigest()}.zst")


def copy_hub_dataset(name: str, text_column: str, folder: Path) -> Path:
    """Stream a dataset of the hub, `NAME[:CONFIG[:SPLIT]]`, into `folder` as JSON lines and return the file.

    Only the text column, or the two columns of a pair, are kept. An existing copy is reused; if several jobs need it,
    one makes it and the others wait.
    """
    path = folder / f"{name.replace('/', '--').replace(':', '-')}.{text_column}.jsonl.zst"
    if path.exists():
        return path
    fields = text_columns(text_column)
    reading = (
        f"dataset {name!r} can't be read",
        "check it on the hub and the network, or give its files: --corpus FOLDER",
    )
    # Asks the hub before any file is created.
    with library_errors(*reading):
        rows = _hub_rows(name, fields)

    def lines(advance: Callable[[int], None]) -> Iterator[bytes]:
        with library_errors(*reading):
            for number, row in enumerate(rows):
                texts = {field: row.get(field) for field in fields}
                missing = [field for field, text in texts.items() if not isinstance(text, str)]
                if not number and missing:
                    raise UserError(
                        f"the first row has no text in {missing[0]!r}, only columns {', '.join(row)}; name one with "
                        "--text-column"
                    )
                yield json.dumps(texts, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
                advance(1)

    with _held(folder):
        if not path.exists():
            with progress.task(f"copy {name}", None, "rows") as advance:
                _compress(lines(advance), path)
    return path


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Create and lock the folder of copies, and remove unfinished copies of jobs that died."""
    with made_folder(folder), lock_folder(folder, wait=True):
        for left in folder.glob(f"*{TEMPORARY}"):
            left.unlink(missing_ok=True)
        yield


def _hub_rows(name: str, fields: Sequence[str]) -> Iterable[dict[str, object]]:
    repo, config, split = [*name.split(":"), "", ""][:3]
    try:
        from huggingface_hub import HfApi

        ask_hub(lambda: HfApi().dataset_info(repo, timeout=5))
    except HubUnreachable as error:
        raise UserError(
            f"dataset {repo!r} can't be loaded from the hub ({error}); "
            "check the name and the network, or give a file: --corpus wiki.txt"
        ) from error
    import datasets

    rows = datasets.load_dataset(repo, config or None, split=split or "train", streaming=True)
    if rows.column_names is not None and (missing := [field for field in fields if field not in rows.column_names]):
        raise UserError(
            f"dataset {repo!r} has no column {missing[0]!r}, only {', '.join(rows.column_names)}; "
            "name one with --text-column"
        )
    return rows  # type: ignore[no-any-return]


def _compress(chunks: Iterable[bytes], path: Path) -> None:
    import zstandard

    with replacing(path) as file, zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as writer:
        for chunk in chunks:
            writer.write(chunk)
