"""Copies of corpora that can be read only once: standard input, and datasets streamed from the hub.

A run reads its corpus twice (to plan, then to embed) and again when it is resumed, so what can't be read
again is first written down beside the shards, compressed.
"""

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash

from sentence_distill.data import progress
from sentence_distill.data.corpus import text_columns
from sentence_distill.data.errors import UserError
from sentence_distill.data.hub import HubUnreachable, ask_hub
from sentence_distill.pipeline.files import TEMPORARY, lock_folder, made_folder, replacing

_CHUNK = 1 << 20
# The names of a dataset's configurations are part of the hub's answer, and some have hundreds.
_ANSWER_CHARACTERS = 1000


def spool_stream(stream: BinaryIO, folder: Path) -> Path:
    """Copy `stream` into `folder` and return the file; its name carries the content's hash."""
    digest = xxhash.xxh3_64()

    def chunks() -> Iterator[bytes]:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            yield chunk

    with made_folder(folder), _alone(folder):
        with replacing(folder / "stdin.zst") as file:
            _compress(chunks(), file)
        return (folder / "stdin.zst").replace(folder / f"stdin-{digest.hexdigest()}.zst")


def spool_hub_dataset(name: str, text_column: str, folder: Path) -> Path:
    """Stream a dataset of the hub into `folder` as JSON lines and return the file; a finished copy is reused.

    Of several jobs one makes the copy, and the others wait for it.

    Args:
        name: `NAME`, `NAME:CONFIG` or `NAME:CONFIG:SPLIT`; the split is "train" unless named.
        text_column: the column that holds the text, or the two of a pair, kept under their names.
        folder: where the copy goes.

    Raises:
        UserError: the hub can't be reached, has no such dataset, configuration, split or column, or stops in mid-copy.
    """
    path = folder / f"{name.replace('/', '--').replace(':', '-')}.{text_column}.jsonl.zst"
    if path.exists():
        return path
    fields = text_columns(text_column)
    # The hub's refusal comes before anything is made here.
    rows = _hub_rows(name, fields)
    with made_folder(folder), _alone(folder):
        if not path.exists():
            with progress.task(f"copy {name}", None, "rows") as advance, replacing(path) as file:
                _compress(_json_lines(_named_errors(name, rows), fields, advance), file)
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of copies, and remove what jobs that died while they copied have left in it."""
    with lock_folder(folder, wait=True):
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
            f"dataset {repo!r} can't be had from the hub ({error}); "
            "check the name and the network, or give a file: --corpus wiki.txt"
        ) from error
    import datasets

    try:
        rows = datasets.load_dataset(repo, config or None, split=split or "train", streaming=True)
    except Exception as error:
        raise _refusal(name, error) from error
    if rows.column_names is not None and (missing := [field for field in fields if field not in rows.column_names]):
        raise UserError(
            f"dataset {repo!r} has no column {missing[0]!r} but {', '.join(rows.column_names)}; "
            "name one with --text-column"
        )
    return rows  # type: ignore[no-any-return]


def _named_errors(name: str, rows: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Yield `rows`; what ends them too early is a `UserError`."""
    try:
        yield from rows
    except Exception as error:
        raise _refusal(name, error) from error


def _refusal(name: str, error: Exception) -> UserError:
    """What `datasets` raised, or one of the many libraries that it reads with, in one line."""
    said = textwrap.shorten(str(error), _ANSWER_CHARACTERS, placeholder=" …") or type(error).__name__
    return UserError(
        f"dataset {name!r} can't be read: {said}; check it on the hub and the network, or download it and give its "
        "files: --corpus FOLDER"
    )


def _json_lines(
    rows: Iterable[dict[str, object]], fields: Sequence[str], advance: Callable[[int], None]
) -> Iterator[bytes]:
    for number, row in enumerate(rows):
        texts = {field: row.get(field) for field in fields}
        missing = [field for field, text in texts.items() if not isinstance(text, str)]
        if not number and missing:
            raise UserError(
                f"the first row has no text at {missing[0]!r} but {', '.join(row)}; name it with --text-column"
            )
        yield json.dumps(texts, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
        advance(1)


def _compress(chunks: Iterable[bytes], file: BinaryIO) -> None:
    import zstandard

    with zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as writer:
        for chunk in chunks:
            writer.write(chunk)
