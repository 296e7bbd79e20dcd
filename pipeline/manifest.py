"""manifest.json: closes a folder of shards and says what is in it."""

from collections import Counter
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.pipeline.files import dump_json, load_json, write_atomically
from sentence_distill.pipeline.fingerprint import differing_fields
from sentence_distill.pipeline.plan import Plan
from sentence_distill.pipeline.rejected import REJECTED, join_lists, remove_lists
from sentence_distill.pipeline.shards import FORMAT_VERSION, read_sidecar, shard_name, shard_problem

MANIFEST = "manifest.json"
PLAN = "plan.arrow"
PLAN_SIDECAR = "plan.json"
TOKENIZER = "teacher/tokenizer.json"
WORD_EMBEDDINGS = "teacher/word_embeddings.safetensors"
ENTRY = ("shard", "rows", "tokens", "bytes", "xxh3_128")
_CHECKED = (PLAN, PLAN_SIDECAR, TOKENIZER, WORD_EMBEDDINGS, REJECTED)


def load_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete folder, or None where it is missing or damaged."""
    try:
        return load_json(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def require_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete folder.

    Raises:
        UserError: the folder is not there, not complete, or of another format version.
    """
    manifest = load_manifest(folder)
    if manifest is None:
        require_shards(folder)
        raise UserError(
            f"{folder} is not complete: its {MANIFEST} is missing or damaged; run sd embed again to finish it"
        )
    if manifest["format"] != FORMAT_VERSION:
        raise UserError(f"{folder} has shard format {manifest['format']}, this version reads {FORMAT_VERSION}")
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


def require_shard(shard: Path, entry: dict[str, Any]) -> None:
    """Check a shard against its `entry` in the manifest, to the checksum.

    Raises:
        UserError: it is missing, damaged, or not the one that the manifest names.
    """
    sidecar = read_sidecar(shard)
    if sidecar is None or sidecar["xxh3_128"] != entry["xxh3_128"]:
        problem = "has no sidecar that matches the manifest"
    else:
        problem = shard_problem(shard, sidecar)
    if problem:
        raise UserError(f"shard {shard} {problem}; run sd embed again, it makes damaged shards anew")


def file_problems(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """One line for each file beside the shards that is missing or damaged."""
    return [
        f"{name} is missing or does not match its checksum"
        for name, checksum in manifest["files"].items()
        if not (folder / name).exists() or file_hash(folder / name) != checksum
    ]


def close_folder(folder: Path, plan: Plan) -> dict[str, Any]:
    """Join the lists of rejected sentences, write the manifest and return it.

    Its counts are sums over the sidecars, and it holds no time or host.

    Raises:
        UserError: shards or lists are missing, or of different runs, or no sentence could be embedded at all.
    """
    sidecars = _sidecars(folder, plan)
    fingerprint = sidecars[0]["fingerprint"]
    if fingerprint["plan"] != plan.hash:
        raise UserError(f"{folder}: its plan is not that of its shards; run sd embed with the options of their run")
    if file_hash(folder / TOKENIZER) != fingerprint["tokenizer"]:
        raise UserError(f"{folder}: {TOKENIZER} is not that of its shards; run sd embed with the options of their run")
    join_lists(folder, [sidecar["rejected_xxh3_128"] for sidecar in sidecars])
    totals: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for sidecar in sidecars:
        counts = sidecar["counts"]
        totals.update({key: sidecar[key] for key in ("rows", "tokens", "bytes")})
        totals.update({key: counts[key] for key in ("records", "sentences", "duplicates")})
        rejected.update(counts["rejected"])
    if not totals["rows"]:
        raise UserError(f"no sentence could be embedded; {folder / REJECTED} says why")
    manifest = {
        "format": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "notice": next((sidecar["notice"] for sidecar in sidecars if sidecar["notice"]), ""),
        "totals": {**totals, "rejected": dict(sorted(rejected.items()))},
        "files": {name: file_hash(folder / name) for name in _CHECKED},
        "shards": [{key: sidecar[key] for key in ENTRY} for sidecar in sidecars],
    }
    write_atomically(folder / MANIFEST, dump_json(manifest))
    remove_lists(folder)
    return manifest


def _sidecars(folder: Path, plan: Plan) -> list[dict[str, Any]]:
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
        if differing := differing_fields(sidecars[0]["fingerprint"], sidecar["fingerprint"]):
            raise UserError(
                f"{folder}: {sidecar['shard']} and {sidecars[0]['shard']} are of different runs, which differ in "
                f"{'; '.join(differing)}; remove those that are wrong and run their jobs again"
            )
    return sidecars
