"""Copies of corpora that can be read only once: standard input, and datasets streamed from the hub.

A run reads its corpus twice (to plan, then to embed) and again when it is resumed, so what can't be read
again is first written down beside the shards, compressed.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import xxhash

from sentence_distill.data.corpus import text_fields
from sentence_distill.data.errors import UserError
from sentence_distill.data.hub import HubUnreachable, ask_hub
from sentence_distill.data.progress import Progress

HUB_PREFIX = "hf:"
_CHUNK = 1 << 20


def spool_stream(stream: BinaryIO, folder: Path) -> Path:
    """Copy `stream` into `folder` and return the file; its name carries the content's hash."""
    digest = xxhash.xxh3_64()

    def chunks() -> Iterator[bytes]:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            yield chunk

    incoming = _write(chunks(), folder / f"stdin.{os.getpid()}.incoming")
    path = folder / f"stdin-{digest.hexdigest()}.zst"
    os.replace(incoming, path)
    return path


def spool_hub_dataset(name: str, text_field: str, folder: Path, progress: Progress) -> Path:
    """Stream a dataset of the hub into `folder` as JSON lines and return the file; a finished copy is reused.

    Args:
        name: `NAME`, `NAME:CONFIG` or `NAME:CONFIG:SPLIT`; the split is "train" unless named.
        text_field: the column that holds the text, or the two of a pair, kept under their names.
        folder: where the copy goes.
        progress: shows the rows copied.

    Raises:
        UserError: the hub can't be reached or has no such dataset, configuration, split or column.
    """
    path = folder / f"{name.replace('/', '--').replace(':', '-')}.{text_field}.jsonl.zst"
    if not path.exists():
        fields = text_fields(text_field)
        rows = _hub_rows(name, fields)
        with progress.task(f"copy {name}", None, "rows") as advance:
            incoming = _write(_json_lines(rows, fields, advance), path.with_suffix(f".{os.getpid()}.incoming"))
        os.replace(incoming, path)
    return path


def _hub_rows(name: str, fields: Sequence[str]) -> Iterable[dict[str, object]]:
    repo, config, split = [*name.split(":"), "", ""][:3]
    try:
        from huggingface_hub import HfApi

        ask_hub(lambda: HfApi().dataset_info(repo, timeout=5))
    except HubUnreachable as error:
        raise UserError(
            f"dataset {repo!r} can't be had from the hub ({error}); "
            "check the name and the network, or give a file: --corpus wiki.txt"
        ) from error
    import datasets

    try:
        rows = datasets.load_dataset(repo, config or None, split=split or "train", streaming=True)
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"dataset {name!r}: {str(error).splitlines()[0]}") from error
    if rows.column_names is not None and (missing := [field for field in fields if field not in rows.column_names]):
        raise UserError(
            f"dataset {repo!r} has no column {missing[0]!r} but {', '.join(rows.column_names)}; "
            "name one with --text-field"
        )
    return rows  # type: ignore[no-any-return]


def _json_lines(
    rows: Iterable[dict[str, object]], fields: Sequence[str], advance: Callable[[int], None]
) -> Iterator[bytes]:
    for number, row in enumerate(rows):
        texts = {field: row.get(field) for field in fields}
        missing = [field for field, text in texts.items() if not isinstance(text, str)]
        if not number and missing:
            raise UserError(
                f"the first row has no text at {missing[0]!r} but {', '.join(row)}; name it with --text-field"
            )
        yield json.dumps(texts, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
        advance(1)


def _write(chunks: Iterable[bytes], path: Path) -> Path:
    import zstandard

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as writer:
        for chunk in chunks:
            writer.write(chunk)
    return path
