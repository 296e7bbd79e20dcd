"""Files of text to files of vectors, in windows: memory stays flat, and a run that was stopped goes on."""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Progress
from sentence_distill.data.records import Position, Record
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.files import TEMPORARY, replacing, write_atomically
from sentence_distill.pipeline.fingerprint import differing_fields
from sentence_distill.pipeline.lock import lock_folder
from sentence_distill.student.encoding.text_encoder import TextEncoder
from sentence_distill.student.encoding.vector_files import make_batch, schema, vector_writer

# Rows of a part, which is what a kill costs at most.
WINDOW = 1 << 15
# Or fewer, where they are long.
WINDOW_CHARACTERS = 1 << 24
# Who reads a pipe does not want to wait long.
_PIPE_WINDOW = 1 << 12
_RUN = "run.json"


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What the rows of a file of vectors are."""

    dtype: str = "float32"
    """Of the vectors, float32 or float16."""
    text: bool = True
    """Whether the texts stand beside their vectors."""
    format: str
    """One of `vector_files.FORMATS`."""


@dataclass
class Encoded:
    """What a run did: rows written, those that have no text by reason, and where the first of them stands."""

    rows: int = 0
    without_text: dict[str, int] = field(default_factory=dict)
    first_without: str = ""

    def add(self, corpus: Corpus, records: list[Record]) -> None:
        """Count a window."""
        self.rows += len(records)
        for record in records:
            if record.text is None:
                self.without_text[record.reason] = self.without_text.get(record.reason, 0) + 1
                name = corpus.sources[record.position.file].name
                self.first_without = self.first_without or f"{name}, record {record.position.record + 1:,}"

    def describe(self) -> str:
        """The reasons for which records have no text."""
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.without_text.items())
        return f"{reasons}; the first: {self.first_without}"


class FileEncoder:
    """Encodes the records of a corpus, one vector a record, in their order; a record without text gets zeros."""

    def __init__(self, encoder: TextEncoder, corpus: Corpus, config: EncodeConfig, progress: Progress) -> None:
        self._encoder, self._corpus, self._config, self._progress = encoder, corpus, config, progress
        self._schema = schema(encoder.dim, config.dtype, text=config.text and config.format != "npy")

    def stream(self, file: BinaryIO) -> Encoded:
        """Write to a pipe.

        Raises:
            UserError: the corpus can't be read to its end.
        """
        done = Encoded()
        with (
            vector_writer(file, self._config.format, self._schema, seekable=False) as write,
            self._progress.task("encode", None, "sentences") as advance,
        ):
            records = self._corpus.records()
            # Not read ahead: a thread that waits for a pipe could not be stopped.
            while (window := self._read(records, _PIPE_WINDOW))[0]:
                write(self._rows(*window))
                file.flush()
                done.add(self._corpus, window[0])
                advance(len(window[0]))
        return done

    def write(self, out: Path) -> Encoded:
        """Write a file; the windows that an earlier, stopped run left beside it are not encoded again.

        Args:
            out: the file, which is there when it is complete.

        Raises:
            UserError: as `stream`; or no record has text, or the earlier run was another one, or is still at work.
        """
        parts = parts_folder(out)
        parts.mkdir(parents=True, exist_ok=True)
        with lock_folder(parts):
            self._check_run(parts)
            done, number = self._encode_parts(parts)
            if done.rows and sum(done.without_text.values()) == done.rows:
                shutil.rmtree(parts)
                raise UserError(f"none of the {done.rows:,} records has text ({done.describe()}); nothing was written")
            self._join(parts, number, out)
            # In one step: half of a run that is over must not look like one to go on with.
            over = parts.with_name(parts.name + TEMPORARY)
            shutil.rmtree(over, ignore_errors=True)
            os.rename(parts, over)
        shutil.rmtree(over)
        return done

    def _check_run(self, parts: Path) -> None:
        run = {
            **self._encoder.identity(),
            "input": [[source.name, source.content_hash()] for source in self._corpus.sources],
            "text_field": self._corpus.text_field,
            "input_format": self._corpus.format,
            "window": [WINDOW, WINDOW_CHARACTERS],
            **asdict(self._config),
        }
        file = parts / _RUN
        if not (file.exists() and _sidecar(_part(parts, 0)).exists()):
            # Nothing that could be gone on with: parts without their run belong to nobody.
            for part in parts.glob("part-*"):
                part.unlink()
            write_atomically(file, json.dumps(run, indent=1).encode())
        elif differing := differing_fields(json.loads(file.read_text(encoding="utf-8")), run):
            raise UserError(
                f"{parts} holds what another run encoded: {', '.join(differing)}; remove it, or name another --out"
            )

    def _encode_parts(self, parts: Path) -> tuple[Encoded, int]:
        """What all windows came to, and how many parts they are."""
        done, start, number = Encoded(), None, 0
        while _sidecar(part := _part(parts, number)).exists():
            state = json.loads(_sidecar(part).read_text(encoding="utf-8"))
            start, number = Position(**state.pop("last")), number + 1
            done = Encoded(**state)
        if number:
            self._progress.log(f"goes on after {done.rows:,} sentences")
        with self._progress.task("encode", None, "sentences", done.rows) as advance:
            for records, batch in self._windows_ahead(start):
                done.add(self._corpus, records)
                part, number = _part(parts, number), number + 1
                with replacing(part) as file, vector_writer(file, "arrow", self._schema, seekable=True) as write:
                    write(batch)
                state = {**asdict(done), "last": asdict(records[-1].position)}
                write_atomically(_sidecar(part), json.dumps(state).encode())
                advance(len(records))
        return done, number

    def _join(self, parts: Path, number: int, out: Path) -> None:
        with (
            replacing(out) as file,
            vector_writer(file, self._config.format, self._schema, seekable=True) as write,
        ):
            for part in (_part(parts, place) for place in range(number)):
                try:
                    with pa.memory_map(str(part)) as mapped:
                        write(pa.ipc.open_file(mapped).get_batch(0))
                except (pa.ArrowException, FileNotFoundError) as error:
                    raise UserError(f"{part} is damaged or gone ({error}); remove {parts} and begin again") from error

    def _windows_ahead(self, after: Position | None) -> Iterator[tuple[list[Record], pa.RecordBatch]]:
        """Records of a part with their rows; the next ones are read and tokenised meanwhile."""
        # A run goes on behind the last record that it has.
        records = islice(self._corpus.records(after or Position()), 0 if after is None else 1, None)
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._read, records, WINDOW)
            while (window := coming.result())[0]:
                coming = reader.submit(self._read, records, WINDOW)
                yield window[0], self._rows(*window)

    def _read(self, records: Iterator[Record], size: int) -> tuple[list[Record], Tokens]:
        window: list[Record] = []
        characters = 0
        while len(window) < size and characters < WINDOW_CHARACTERS and (record := next(records, None)):
            window.append(record)
            characters += len(record.text or "")
        return window, self._encoder.tokenize([_text(record) or "" for record in window])

    def _rows(self, records: list[Record], tokens: Tokens) -> pa.RecordBatch:
        vectors = self._encoder.vectors(tokens)
        texts = [_text(record) for record in records]
        vectors[[text is None for text in texts]] = 0
        return make_batch(self._schema, texts, vectors)


def _text(record: Record) -> str | None:
    return None if record.text is None else record.text.rstrip("\r\n")


def parts_folder(out: Path) -> Path:
    """Where a run keeps what it has encoded until `out` is complete."""
    return out.with_name(f"{out.name}.parts")


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:06d}.arrow"


def _sidecar(part: Path) -> Path:
    return part.with_suffix(".json")
