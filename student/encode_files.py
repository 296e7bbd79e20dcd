"""Files of text to files of vectors, in windows: memory stays flat, and a run that was stopped goes on."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import torch

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash, url_hash
from sentence_distill.data.progress import Progress
from sentence_distill.data.records import Position, Record
from sentence_distill.pipeline.files import replacing, write_atomically
from sentence_distill.pipeline.fingerprint import differing_fields
from sentence_distill.pipeline.lock import lock_folder
from sentence_distill.student.folder import module_weights
from sentence_distill.student.model import Student, encode_tokens
from sentence_distill.student.vector_files import make_batch, schema, vector_writer

# Rows of a part, which is what a kill costs at most.
WINDOW = 1 << 15
# Who reads a pipe does not want to wait long.
_PIPE_WINDOW = 1 << 12
_RUN = "run.json"


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What the rows of a file of vectors are."""

    precision: torch.dtype
    """Of the LSTM's arithmetic, see `Student.encode`."""
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


class FileEncoder:
    """Encodes the records of a corpus, one vector a record, in their order; a record without text gets zeros."""

    def __init__(self, student: Student, corpus: Corpus, config: EncodeConfig, progress: Progress) -> None:
        self._student, self._corpus, self._config, self._progress = student, corpus, config, progress
        self._schema = schema(student.dim, config.dtype, text=config.text and config.format != "npy")

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
            for records, batch in self._windows(_PIPE_WINDOW):
                write(batch)
                file.flush()
                done.add(self._corpus, records)
                advance(len(records))
        return done

    def write(self, out: Path, student: Path) -> Encoded:
        """Write a file; the windows that an earlier, stopped run left beside it are not encoded again.

        Args:
            out: the file, which is there when it is complete.
            student: folder of the student.

        Raises:
            UserError: as `stream`; or the earlier run was another one, or is still at work.
        """
        parts = out.with_name(f"{out.name}.parts")
        parts.mkdir(parents=True, exist_ok=True)
        with lock_folder(parts):
            self._check_run(parts, student)
            done = self._encode_parts(parts)
            self._join(parts, out)
        shutil.rmtree(parts)
        return done

    def _check_run(self, parts: Path, student: Path) -> None:
        sources = self._corpus.sources
        run = {
            "student": [file_hash(path) for path in module_weights(student)],
            "input": [[source.name, url_hash(source.url)] for source in sources],
            "text_field": self._corpus.text_field,
            "input_format": self._corpus.format,
            "window": WINDOW,
            **{name: str(value) for name, value in asdict(self._config).items()},
        }
        file = parts / _RUN
        if not file.exists():
            write_atomically(file, json.dumps(run, indent=1).encode())
        elif differing := differing_fields(json.loads(file.read_text(encoding="utf-8")), run):
            raise UserError(
                f"{parts} holds what another run encoded: {', '.join(differing)}; remove it, or name another --out"
            )

    def _encode_parts(self, parts: Path) -> Encoded:
        done, start, number = Encoded(), None, 0
        while _sidecar(part := _part(parts, number)).exists():
            state = json.loads(_sidecar(part).read_text(encoding="utf-8"))
            start, number = Position(**state.pop("last")), number + 1
            done = Encoded(**state)
        if number:
            self._progress.log(f"goes on after {done.rows:,} sentences")
        with self._progress.task("encode", None, "sentences", done.rows) as advance:
            for records, batch in self._windows(WINDOW, after=start):
                done.add(self._corpus, records)
                part, number = _part(parts, number), number + 1
                with replacing(part) as file, vector_writer(file, "arrow", self._schema, seekable=True) as write:
                    write(batch)
                state = {**asdict(done), "last": asdict(records[-1].position)}
                write_atomically(_sidecar(part), json.dumps(state).encode())
                advance(len(records))
        return done

    def _join(self, parts: Path, out: Path) -> None:
        with (
            replacing(out) as file,
            vector_writer(file, self._config.format, self._schema, seekable=True) as write,
        ):
            for number in count():
                if not (part := _part(parts, number)).exists():
                    break
                with pa.memory_map(str(part)) as mapped:
                    write(pa.ipc.open_file(mapped).get_batch(0))

    def _windows(self, size: int, *, after: Position | None = None) -> Iterator[tuple[list[Record], pa.RecordBatch]]:
        """Records, `size` at a time, with their rows; the next ones are read and tokenised meanwhile."""
        records = self._corpus.records(after or Position())
        # A run goes on behind the last record that it has.
        records = islice(records, 0 if after is None else 1, None)
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._read, records, size)
            while (window := coming.result())[0]:
                coming = reader.submit(self._read, records, size)
                read, tokens = window
                vectors = encode_tokens(self._student.encoder, tokens, self._config.precision).numpy()
                yield read, make_batch(self._schema, [_text(record) for record in read], vectors)

    def _read(self, records: Iterator[Record], size: int) -> tuple[list[Record], list[list[int]]]:
        window = list(islice(records, size))
        return window, self._student.tokenize([_text(record) or "" for record in window])


def _text(record: Record) -> str | None:
    return None if record.text is None else record.text.rstrip("\r\n")


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:06d}.arrow"


def _sidecar(part: Path) -> Path:
    return part.with_suffix(".json")
