"""Checks a folder of shards: every checksum, every count, every row."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sentence_distill.pipeline.fingerprint import differing_fields
from sentence_distill.pipeline.manifest import PLAN, file_problems, load_manifest
from sentence_distill.pipeline.plan import Plan
from sentence_distill.pipeline.rejected import REJECTED, listed
from sentence_distill.pipeline.shards import Shard, read_sidecar, shard_name, shard_problem


def verify_folder(folder: Path, advance: Callable[[int], None]) -> list[str]:
    """List all that is wrong with a folder, "" for nothing: one line a finding.

    Args:
        folder: a folder of shards.
        advance: called with 1 after each shard.
    """
    manifest = load_manifest(folder)
    if manifest is None:
        return ["manifest.json is missing or damaged: the run is not complete"]
    problems = []
    for index, entry in enumerate(manifest["shards"]):
        shard = folder / shard_name(index)
        if problem := _shard(shard, entry, manifest):
            problems.append(f"{shard.name} {problem}")
        advance(1)
    known = {entry["shard"] for entry in manifest["shards"]}
    problems += [
        f"{extra.name} belongs to no shard of the manifest"
        for extra in sorted(folder.glob("shard-*"))
        if extra.with_suffix(".arrow").name not in known
    ]
    problems += file_problems(folder, manifest)
    return problems or _totals(folder, manifest)


def _totals(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What does not add up: every record of the plan has to be accounted for by rows, duplicates or rejections."""
    totals = manifest["totals"]
    sums: Counter[str] = Counter()
    problems = []
    lists = listed(folder, range(len(manifest["shards"])))
    for index, entry in enumerate(manifest["shards"]):
        sidecar = read_sidecar(folder / entry["shard"])
        assert sidecar is not None, "every shard was found to be right"
        if sidecar["rejected_xxh3_128"] not in lists[index]:
            problems.append(f"{REJECTED} has other lines of {entry['shard']} than its sidecar says")
        sums.update({key: sidecar[key] for key in ("rows", "tokens", "bytes")} | _flat(sidecar["counts"]))
    if sums != Counter(_flat(totals)):
        problems.append("manifest.json has other totals than its shards add up to")
    if totals["sentences"] != totals["rows"] + totals["duplicates"] + sum(totals["rejected"].values()):
        problems.append("manifest.json has totals that do not add up")
    plan = Plan.load(folder / PLAN)
    if plan is not None and totals["records"] != sum(part.records for part in plan.slices):
        problems.append("manifest.json has another number of records than the plan")
    return problems


def _flat(counts: dict[str, Any]) -> dict[str, int]:
    rejected = {f"rejected, {reason}": count for reason, count in counts["rejected"].items()}
    return {key: value for key, value in counts.items() if key != "rejected"} | rejected


def _shard(shard: Path, entry: dict[str, Any], manifest: dict[str, Any]) -> str:
    sidecar = read_sidecar(shard)
    if sidecar is None:
        return "has no sidecar, or a damaged one"
    if differing := differing_fields(sidecar["fingerprint"], manifest["fingerprint"]):
        return f"is of another run, which differs in {'; '.join(differing)}"
    if any(sidecar[key] != value for key, value in entry.items()):
        return "has another sidecar than the manifest says"
    if problem := shard_problem(shard, sidecar):
        return problem
    counts = sidecar["counts"]
    if counts["sentences"] != sidecar["rows"] + counts["duplicates"] + sum(counts["rejected"].values()):
        return "has counts that do not add up"
    try:
        return _rows(Shard.open(shard), sidecar)
    except (pa.ArrowException, KeyError, ValueError) as error:
        return f"can't be read: {error}"


def _rows(rows: Shard, sidecar: dict[str, Any]) -> str:
    fingerprint = sidecar["fingerprint"]
    if len(rows.ids) != sidecar["rows"] or len(rows.tokens.ids) != sidecar["tokens"]:
        return "has other numbers of rows or tokens than its sidecar says"
    if rows.embeddings.shape[1] != fingerprint["dim"] or str(rows.embeddings.dtype) != fingerprint["dtype"]:
        return "has embeddings of another width or type than its fingerprint says"
    if len(rows.tokens.ids) and int(rows.tokens.ids.max()) >= fingerprint["vocabulary"]:
        return "has a token id outside the vocabulary"
    if not np.isfinite(rows.embeddings).all():
        return "has an embedding that is not finite"
    if not ((rows.tokens.lengths > 0) & (rows.tokens.lengths <= fingerprint["max_tokens"])).all():
        return "has a sentence with no tokens or too many"
    return ""
