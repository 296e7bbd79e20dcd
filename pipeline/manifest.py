"""A folder of shards: its manifest, its verification, and logits read from it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.records import PAIR_SEPARATOR
from sentence_distill.pipeline.plan import Plan
from sentence_distill.pipeline.records import (
    MANIFEST,
    PLAN,
    PLAN_SIDECAR,
    REJECTED,
    TOKENIZER,
    WORD_EMBEDDINGS,
    Entry,
    Fingerprint,
    Manifest,
    Sidecar,
    Totals,
    differing_fields,
    read_record,
    write_record,
)
from sentence_distill.pipeline.shards import (
    Shard,
    join_lists,
    listed,
    read_sidecar,
    remove_lists,
    require_shard,
    shard_name,
    shard_problem,
    shard_texts,
)
from sentence_distill.pipeline.teacher_folder import LOGITS

_CHECKED = (PLAN, PLAN_SIDECAR, TOKENIZER, WORD_EMBEDDINGS, REJECTED)


def load_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a complete folder; None if it is missing or damaged."""
    return read_record(folder / MANIFEST, Manifest)


def require_manifest(folder: Path) -> Manifest:
    """Read the manifest of a complete folder.

    Raises:
        UserError: the folder is not there, not complete, or of another format version.
    """
    manifest = load_manifest(folder)
    if manifest is None:
        require_shards(folder)
        raise UserError(
            f"{folder} is not complete: its {MANIFEST} is missing or damaged; run sd embed again to finish it"
        )
    return manifest


def require_vectors(folder: Path) -> Manifest:
    """Read the manifest of a complete folder of single sentences' embeddings: a student without a task learns from it.

    Raises:
        UserError: the folder is not complete, or holds logits or pairs.
    """
    manifest = require_manifest(folder)
    if manifest.fingerprint.pooling == LOGITS:
        raise UserError(
            f"{folder} holds a fine-tuned teacher's logits, which a student of one task learns from: "
            f"sd finetune STUDENT --task NAME --logits {folder}"
        )
    if manifest.fingerprint.separator:
        raise UserError(
            f"{folder} holds embeddings of pairs, and this reads single sentences: sd embed with one --text-column, "
            "or embed the pairs with a fine-tuned teacher for sd finetune STUDENT --task NAME --logits SHARDS"
        )
    return manifest


def require_shards(folder: Path) -> None:
    """Refuse a name that is no folder of shards, a mistyped one for example.

    Raises:
        UserError: the folder is not there, or holds no shard at all.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; check the name, or make it: sd embed --corpus wiki.txt --out {folder}")
    if not any(folder.glob("shard-*.arrow")):
        raise UserError(f"{folder} holds no shards; make them: sd embed --corpus wiki.txt --out {folder}")


class ShardFolder:
    """The shards of a complete folder for reading; the checksum of each is compared when it is first used."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Check all that needs no reading: sidecars and sizes, and the files next to the shards.

        Raises:
            UserError: a shard or another file is missing or damaged, which is named.
        """
        self._folder = folder
        self._entries = manifest.shards
        self._checked = [False] * len(manifest.shards)
        for entry in manifest.shards:
            require_shard(folder / entry.shard, entry, whole=False)
        if problems := file_problems(folder, manifest):
            raise UserError(f"{folder / problems[0]}; run sd embed again, it rebuilds damaged files")

    def open(self, index: int) -> Shard:
        """Open a shard.

        Raises:
            UserError: it is damaged.
        """
        return Shard.open(self._path(index))

    def texts(self, index: int, rows: np.ndarray | None = None) -> list[str]:
        """Return the sentences of a shard; see `shard_texts`.

        Raises:
            UserError: it is damaged.
        """
        return shard_texts(self._path(index), rows)

    def _path(self, index: int) -> Path:
        entry = self._entries[index]
        if not self._checked[index]:
            require_shard(self._folder / entry.shard, entry)
            self._checked[index] = True
        return self._folder / entry.shard


def file_problems(folder: Path, manifest: Manifest) -> list[str]:
    """Describe each file next to the shards that is missing or damaged."""
    return [
        f"{name} is missing or does not match its checksum"
        for name, checksum in manifest.files.items()
        if not (folder / name).exists() or file_hash(folder / name) != checksum
    ]


def close_folder(folder: Path, plan: Plan) -> Manifest:
    """Join the lists of rejected sentences, write the manifest and return it; its counts are sums over the sidecars.

    Raises:
        UserError: shards or lists are missing, or of different runs, or no sentence could be embedded at all.
    """
    sidecars = _sidecars(folder, plan)
    fingerprint = sidecars[0].fingerprint
    if fingerprint.plan != plan.hash:
        raise UserError(f"{folder}: its plan is not that of its shards; run sd embed with the options of their run")
    if file_hash(folder / TOKENIZER) != fingerprint.tokenizer:
        raise UserError(f"{folder}: {TOKENIZER} is not that of its shards; run sd embed with the options of their run")
    join_lists(folder, [sidecar.rejected_xxh3_128 for sidecar in sidecars])
    totals = sum_of(sidecars)
    if not totals.rows:
        raise UserError(f"no sentence could be embedded; {folder / REJECTED} says why")
    manifest = Manifest(
        fingerprint=fingerprint,
        totals=totals,
        files={name: file_hash(folder / name) for name in _CHECKED},
        shards=[sidecar.entry for sidecar in sidecars],
    )
    write_record(folder / MANIFEST, manifest)
    remove_lists(folder)
    return manifest


def sum_of(sidecars: list[Sidecar]) -> Totals:
    """Add up the counts of shards."""
    rejected: Counter[str] = Counter()
    for sidecar in sidecars:
        rejected.update(sidecar.counts.rejected)
    return Totals(
        records=sum(sidecar.counts.records for sidecar in sidecars),
        sentences=sum(sidecar.counts.sentences for sidecar in sidecars),
        duplicates=sum(sidecar.counts.duplicates for sidecar in sidecars),
        rejected=dict(sorted(rejected.items())),
        rows=sum(sidecar.rows for sidecar in sidecars),
        tokens=sum(sidecar.tokens for sidecar in sidecars),
        bytes=sum(sidecar.bytes for sidecar in sidecars),
    )


def _sidecars(folder: Path, plan: Plan) -> list[Sidecar]:
    found = [read_sidecar(folder / shard_name(part.index)) for part in plan.slices]
    missing = [
        number
        for number, sidecar in enumerate(found)
        if sidecar is None or shard_problem(folder / shard_name(number), sidecar, whole=False)
    ]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(found)} shards, the first is {shard_name(missing[0])}; "
            "run the jobs that make them again"
        )
    sidecars = [sidecar for sidecar in found if sidecar is not None]
    for sidecar in sidecars:
        if differing := differing_fields(sidecars[0].fingerprint, sidecar.fingerprint):
            raise UserError(
                f"{folder}: {sidecar.shard} and {sidecars[0].shard} are of different runs, which differ in "
                f"{'; '.join(differing)}; remove those that are wrong and run their jobs again"
            )
    return sidecars


# Verification: every checksum, every count, every row.


def verify_folder(folder: Path, advance: Callable[[int], None]) -> list[str]:
    """List all problems of a folder of shards, one line each; `advance` is called with 1 after each shard."""
    manifest = load_manifest(folder)
    if manifest is None:
        return ["manifest.json is missing or damaged: the run is not complete"]
    problems = []
    for index, entry in enumerate(manifest.shards):
        shard = folder / shard_name(index)
        if problem := _shard_problem(shard, entry, manifest):
            problems.append(f"{shard.name} {problem}")
        advance(1)
    known = {entry.shard for entry in manifest.shards}
    problems += [
        f"{extra.name} belongs to no shard of the manifest"
        for extra in sorted(folder.glob("shard-*"))
        if extra.with_suffix(".arrow").name not in known
    ]
    problems += file_problems(folder, manifest)
    return problems or _total_problems(folder, manifest)


def _total_problems(folder: Path, manifest: Manifest) -> list[str]:
    """List totals that do not add up: rows, duplicates and rejections have to account for each record of the plan."""
    totals, problems, sidecars = manifest.totals, [], []
    lists = listed(folder, range(len(manifest.shards)))
    for index, entry in enumerate(manifest.shards):
        sidecar = read_sidecar(folder / entry.shard)
        assert sidecar is not None, "every shard was found to be right"
        if sidecar.rejected_xxh3_128 not in lists[index]:
            problems.append(f"{REJECTED} has other lines of {entry.shard} than its sidecar says")
        sidecars.append(sidecar)
    if sum_of(sidecars) != totals:
        problems.append("manifest.json has other totals than its shards add up to")
    if totals.sentences != totals.rows + totals.duplicates + sum(totals.rejected.values()):
        problems.append("manifest.json has totals that do not add up")
    plan = Plan.load(folder / PLAN)
    if plan is not None and totals.records != sum(part.records for part in plan.slices):
        problems.append("manifest.json has another number of records than the plan")
    return problems


def _shard_problem(shard: Path, entry: Entry, manifest: Manifest) -> str:
    sidecar = read_sidecar(shard)
    if sidecar is None:
        return "has no sidecar, or a damaged one"
    if differing := differing_fields(sidecar.fingerprint, manifest.fingerprint):
        return f"is of another run, which differs in {'; '.join(differing)}"
    if sidecar.entry != entry:
        return "has another sidecar than the manifest says"
    if problem := shard_problem(shard, sidecar):
        return problem
    counts, fingerprint = sidecar.counts, sidecar.fingerprint
    if counts.sentences != sidecar.rows + counts.duplicates + sum(counts.rejected.values()):
        return "has counts that do not add up"
    try:
        rows = Shard.open(shard)
    except (pa.ArrowException, KeyError, ValueError) as error:
        return f"can't be read: {error}"
    if len(rows.ids) != sidecar.rows or len(rows.tokens.ids) != sidecar.tokens:
        return "has other numbers of rows or tokens than its sidecar says"
    if rows.embeddings.shape[1] != fingerprint.dim or str(rows.embeddings.dtype) != fingerprint.dtype:
        return "has embeddings of another width or type than its fingerprint says"
    if len(rows.tokens.ids) and int(rows.tokens.ids.max()) >= fingerprint.vocabulary:
        return "has a token id outside the vocabulary"
    if not np.isfinite(rows.embeddings).all():
        return "has an embedding that is not finite"
    if not ((rows.tokens.lengths > 0) & (rows.tokens.lengths <= fingerprint.max_tokens)).all():
        return "has a sentence with no tokens or too many"
    return ""


# Shards of a fine-tuned teacher's logits: a student of one task learns from them (Tang et al. 2019).


@dataclass(frozen=True)
class Logits:
    """A teacher's logits over the text of a task.

    Args:
        texts: one column of n sentences, or two of the sides of n pairs.
        logits: float32[n, classes]; one class is a regression.
        fingerprint: of the run that wrote them.
    """

    texts: tuple[list[str], ...]
    logits: np.ndarray
    fingerprint: Fingerprint


def read_logits(folder: Path) -> Logits:
    """Read a complete folder of logits, every checksum compared.

    Raises:
        UserError: the folder is not complete, a shard is missing or damaged, or it holds no logits or no text.
    """
    manifest = require_manifest(folder)
    fingerprint = manifest.fingerprint
    if fingerprint.pooling != LOGITS:
        raise UserError(
            f"{folder} holds sentence embeddings (pooling {fingerprint.pooling}) and no logits; write those with a "
            "teacher that has a classification head: sd embed --teacher DIR --pooling logits"
        )
    if not fingerprint.keep_text:
        raise UserError(f"{folder} keeps no text; write it again without --no-text")
    texts: list[str] = []
    logits = []
    for entry in manifest.shards:
        path = folder / entry.shard
        require_shard(path, entry)
        texts += shard_texts(path)
        logits.append(Shard.open(path).embeddings.astype(np.float32))
    columns = tuple(zip(*(text.split(PAIR_SEPARATOR) for text in texts), strict=True))
    return Logits(tuple(map(list, columns)), np.concatenate(logits), fingerprint)
