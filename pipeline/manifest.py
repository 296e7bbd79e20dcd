"""A folder of shards: its manifest, its verification, and reading logits from it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.progress import counted
from sentence_distill.data.records import PAIR_SEPARATOR
from sentence_distill.pipeline.files import replacing
from sentence_distill.pipeline.plan import Plan
from sentence_distill.pipeline.records import (
    FORMAT_VERSION,
    MANIFEST,
    PLAN,
    PLAN_SIDECAR,
    REJECTED,
    TOKENIZER,
    WORD_EMBEDDINGS,
    Fingerprint,
    Manifest,
    Sidecar,
    Totals,
    differing_fields,
    read_record,
    write_record,
)
from sentence_distill.pipeline.shards import (
    LISTS,
    Shard,
    list_path,
    read_lists,
    read_sidecar,
    shard_name,
    shard_problem,
    shard_texts,
)
from sentence_distill.pipeline.teacher_folder import LOGITS

_CHECKED = (PLAN, PLAN_SIDECAR, TOKENIZER, WORD_EMBEDDINGS, REJECTED)
_REBUILD = "run the same sd embed command again to rebuild it"


def load_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a complete folder; None if it is missing or damaged."""
    return read_record(folder / MANIFEST, Manifest)


def require_manifest(folder: Path) -> Manifest:
    """Read the manifest of a complete folder.

    Raises:
        UserError: the folder is missing, incomplete, or of another format version.
    """
    manifest = load_manifest(folder)
    if manifest is None:
        require_shards(folder)
        raise UserError(
            f"{folder} is not complete: its {MANIFEST} is missing or damaged; run sd embed again to finish it"
        )
    return manifest


def require_vectors(folder: Path) -> Manifest:
    """Read the manifest of complete sentence embeddings; refuse logits, and embeddings of pairs."""
    manifest = require_manifest(folder)
    if manifest.fingerprint.pooling == LOGITS:
        raise UserError(
            f"{folder} holds a fine-tuned teacher's logits, which are for fine-tuning on a task: "
            f"sd finetune STUDENT --task NAME --logits {folder}"
        )
    if manifest.fingerprint.separator:
        raise UserError(
            f"{folder} holds embeddings of pairs, not of single sentences: run sd embed with one --text-column, or "
            "embed the pairs with a fine-tuned teacher for sd finetune STUDENT --task NAME --logits SHARDS"
        )
    return manifest


def require_shards(folder: Path) -> None:
    """Refuse a name that is not a folder of shards, such as a mistyped one."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; check the name, or make it: sd embed --corpus wiki.txt --out {folder}")
    if not any(folder.glob("shard-*.arrow")):
        raise UserError(f"{folder} holds no shards; make them: sd embed --corpus wiki.txt --out {folder}")


class ShardFolder:
    """The shards of a complete folder, for reading; the checksum of each is compared on its first use."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Check all sidecars and sizes, and the files next to the shards, which is fast."""
        self._folder = folder
        self._entries = manifest.shards
        self._checked: set[int] = set()
        for index in range(len(self._entries)):
            self._require(index, whole=False)
        if problems := file_problems(folder, manifest):
            raise UserError(f"{folder / problems[0]}; {_REBUILD}")

    def open(self, index: int) -> Shard:
        """Open shard `index`."""
        return Shard.open(self._path(index))

    def texts(self, index: int, rows: np.ndarray | None = None) -> list[str]:
        """Return the sentences of a shard; see `shard_texts`."""
        return shard_texts(self._path(index), rows)

    def _path(self, index: int) -> Path:
        if index not in self._checked:
            self._require(index, whole=True)
            self._checked.add(index)
        return self._folder / self._entries[index].shard

    def _require(self, index: int, *, whole: bool) -> None:
        shard = self._folder / self._entries[index].shard
        if problem := shard_problem(shard, read_sidecar(shard), self._entries[index], whole=whole):
            raise UserError(f"shard {shard} {problem}; {_REBUILD}")


def file_problems(folder: Path, manifest: Manifest) -> list[str]:
    """Describe the files next to the shards that are missing or damaged."""
    return [
        f"{name} is missing or does not match its checksum"
        for name, checksum in manifest.files.items()
        if not (folder / name).exists() or file_hash(folder / name) != checksum
    ]


def require_current_format(folder: Path, sidecar: Sidecar) -> None:
    """Refuse to write into a folder with shards of an earlier format version."""
    if sidecar.format != FORMAT_VERSION:
        raise UserError(
            f"{folder} has shard format {sidecar.format}, which this version reads but does not write; write to "
            "another folder with --out"
        )


def close_folder(folder: Path, plan: Plan) -> Manifest:
    """Join the lists of rejected sentences, then write and return the manifest, with counts summed over sidecars."""
    shards = [folder / shard_name(part.index) for part in plan.slices]
    found = [read_sidecar(shard) for shard in shards]
    sidecars = [
        sidecar
        for shard, sidecar in zip(shards, found, strict=True)
        if sidecar is not None and not shard_problem(shard, sidecar, whole=False)
    ]
    if missing := sorted({shard.name for shard in shards} - {sidecar.shard for sidecar in sidecars}):
        raise UserError(
            f"{folder} lacks {len(missing)} of {counted(len(found), 'shard')}, the first is {missing[0]}; run the jobs "
            "that write them again"
        )
    fingerprint = sidecars[0].fingerprint
    for sidecar in sidecars:
        require_current_format(folder, sidecar)
        if differing := differing_fields(fingerprint, sidecar.fingerprint):
            raise UserError(
                f"{folder}: {sidecar.shard} and {sidecars[0].shard} are from different runs, which differ in "
                f"{'; '.join(differing)}; remove the wrong ones and run their jobs again"
            )
    for name, matches in (
        ("plan", fingerprint.plan == plan.hash),
        (TOKENIZER, fingerprint.tokenizer == file_hash(folder / TOKENIZER)),
    ):
        if not matches:
            raise UserError(f"{folder}: its {name} does not belong to its shards; run the same sd embed command again")
    lists = read_lists(folder, ((number, sidecar.rejected_xxh3_128) for number, sidecar in enumerate(sidecars)))
    # An existing joined file stays until the new one is complete.
    with replacing(folder / REJECTED) as file:
        for number, content in enumerate(lists):
            if content is None:
                raise UserError(
                    f"{list_path(folder, number)} is missing or damaged; run sd embed again, or the job of that shard"
                )
            file.write(content)
    totals = _sum_of(sidecars)
    if not totals.rows:
        raise UserError(f"no sentence could be embedded; see {folder / REJECTED} for the reasons")
    manifest = Manifest(
        fingerprint=fingerprint,
        totals=totals,
        files={name: file_hash(folder / name) for name in _CHECKED},
        shards=[sidecar.entry for sidecar in sidecars],
    )
    write_record(folder / MANIFEST, manifest)
    for path in folder.glob(LISTS):
        path.unlink()
    return manifest


def _sum_of(sidecars: Sequence[Sidecar]) -> Totals:
    rejected: Counter[str] = Counter()
    for sidecar in sidecars:
        rejected.update(sidecar.counts.rejected)
    counts = [sidecar.counts for sidecar in sidecars]
    return Totals(
        rejected=dict(sorted(rejected.items())),
        **{name: sum(getattr(each, name) for each in counts) for name in ("records", "sentences", "duplicates")},
        **{name: sum(getattr(each, name) for each in sidecars) for name in ("rows", "tokens", "bytes")},
    )


# Verification of every checksum, every count and every row.


def verify_folder(folder: Path, advance: Callable[[int], None]) -> list[str]:
    """Return all problems of a folder of shards, one line each; `advance` is called with 1 after each shard."""
    manifest = load_manifest(folder)
    if manifest is None:
        return [f"{MANIFEST} is missing or damaged: the run is not complete"]
    problems, sidecars = [], []
    for entry in manifest.shards:
        shard = folder / entry.shard
        sidecar = read_sidecar(shard)
        if sidecar is not None and (differing := differing_fields(sidecar.fingerprint, manifest.fingerprint)):
            problem = f"is from another run, which differs in {'; '.join(differing)}"
        else:
            problem = shard_problem(shard, sidecar, entry)
        if sidecar is not None and not problem:
            problem = _row_problem(shard, sidecar)
            sidecars.append(sidecar)
        if problem:
            problems.append(f"{entry.shard} {problem}")
        advance(1)
    known = {entry.shard for entry in manifest.shards}
    problems += [
        f"{extra.name} belongs to no shard of the manifest"
        for extra in sorted(folder.glob("shard-*"))
        if extra.with_suffix(".arrow").name not in known
    ]
    problems += file_problems(folder, manifest)
    if problems:
        return problems
    # Rows, duplicates and rejections must account for every record of the plan.
    lists = read_lists(folder, ((number, sidecar.rejected_xxh3_128) for number, sidecar in enumerate(sidecars)))
    for sidecar, content in zip(sidecars, lists, strict=True):
        if content is None:
            problems.append(f"{REJECTED} has other lines for {sidecar.shard} than its sidecar says")
    totals, plan = manifest.totals, Plan.load(folder / PLAN)
    if _sum_of(sidecars) != totals:
        problems.append(f"{MANIFEST} has other totals than its shards add up to")
    if plan is not None and totals.records != sum(part.records for part in plan.slices):
        problems.append(f"{MANIFEST} has a different number of records than the plan")
    return problems


def _row_problem(shard: Path, sidecar: Sidecar) -> str:
    """Describe what is wrong inside a shard with the right checksum; "" if nothing is."""
    counts, fingerprint = sidecar.counts, sidecar.fingerprint
    if counts.sentences != sidecar.rows + counts.duplicates + sum(counts.rejected.values()):
        return "has counts that do not add up"
    try:
        rows = Shard.open(shard)
    except (pa.ArrowException, KeyError, ValueError) as error:
        return f"can't be read: {error}"
    found = (len(rows.ids), len(rows.tokens.ids), rows.embeddings.shape[1], str(rows.embeddings.dtype))
    if found != (sidecar.rows, sidecar.tokens, fingerprint.dim, fingerprint.dtype):
        return "has a different number of rows or tokens, width or data type than its sidecar says"
    if int(rows.tokens.ids.max(initial=0)) >= fingerprint.vocabulary:
        return "has a token id outside the vocabulary"
    if fingerprint.corpora is not None and int(rows.corpora.max(initial=0)) >= len(fingerprint.corpora):
        return "has a row of a corpus that its fingerprint does not name"
    classes = len(fingerprint.labels or ()) if fingerprint.pooling != LOGITS else 0
    if (0 if rows.logits is None else rows.logits.shape[1]) != classes:
        return "has another number of logits than its fingerprint names"
    if not all(np.isfinite(vectors).all() for vectors in (rows.embeddings, rows.logits) if vectors is not None):
        return "has an embedding or logits that are not finite"
    if not ((rows.tokens.lengths > 0) & (rows.tokens.lengths <= fingerprint.max_tokens)).all():
        return "has a sentence with no tokens or too many"
    return ""


# Shards with logits of a fine-tuned teacher, for task-specific distillation (Tang et al. 2019).


@dataclass(frozen=True)
class Logits:
    """Logits of a teacher for the text of a task.

    Args:
        texts: one column of n sentences, or two columns with the sides of n pairs.
        logits: float32[n, classes]; a single class is a regression.
        fingerprint: fingerprint of the run that wrote them.
    """

    texts: tuple[list[str], ...]
    logits: np.ndarray
    fingerprint: Fingerprint


def read_logits(folder: Path) -> Logits:
    """Read a complete folder of logits, and compare every checksum.

    Raises:
        UserError: the folder is incomplete, a shard is missing or damaged, or it holds no logits or no text.
    """
    manifest = require_manifest(folder)
    fingerprint = manifest.fingerprint
    if fingerprint.labels is None:
        raise UserError(
            f"{folder} holds sentence embeddings (pooling {fingerprint.pooling}), not logits; write logits with a "
            "teacher that has a classification head: sd embed --teacher DIR --pooling logits"
        )
    if not fingerprint.keep_text:
        raise UserError(f"{folder} has no text; write it again without --no-text")
    shards = ShardFolder(folder, manifest)
    texts: list[str] = []
    logits = []
    for index in range(len(manifest.shards)):
        texts += shards.texts(index)
        shard = shards.open(index)
        logits.append((shard.embeddings if shard.logits is None else shard.logits).astype(np.float32))
    columns = tuple(zip(*(text.split(PAIR_SEPARATOR) for text in texts), strict=True))
    return Logits(tuple(map(list, columns)), np.concatenate(logits), fingerprint)
