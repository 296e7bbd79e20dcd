"""Writers of rows: JSON lines, CSV, TSV and Parquet."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet

from sentence_distill.data.errors import UserError

OUTPUT_FORMATS = ("jsonl", "csv", "tsv", "parquet")


class RowWriter(Protocol):
    """Writes rows, each a dictionary by column."""

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows; all have the columns of the first."""

    def close(self) -> None:
        """Write what is left; the file stays open."""


def output_format(name: str) -> str:
    """The format that a file's name stands for.

    Raises:
        UserError: it is none of `OUTPUT_FORMATS`.
    """
    suffix = PurePath(name).suffix.lower().removeprefix(".")
    if suffix not in OUTPUT_FORMATS:
        raise UserError(f"--out {name}: the name should end in .{', .'.join(OUTPUT_FORMATS)}")
    return suffix


def open_writer(file: BinaryIO, format: str) -> RowWriter:
    """A writer of one of `OUTPUT_FORMATS` into an open file."""
    if format == "parquet":
        return _Parquet(file)
    return _JsonLines(file) if format == "jsonl" else _Csv(file, "," if format == "csv" else "\t")


class _JsonLines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        # Dates and decimals of Parquet have no other form in JSON.
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
        self._file.write("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        self._file.flush()


class _Csv:
    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        self._text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        self._delimiter = delimiter
        self._writer: csv.DictWriter[str] | None = None

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        if self._writer is None:
            columns = list(rows[0])
            self._writer = csv.DictWriter(self._text, columns, delimiter=self._delimiter, lineterminator="\n")
            self._writer.writeheader()
        try:
            self._writer.writerows(rows)
        except ValueError as error:
            raise UserError(f"rows differ in their columns ({error}); write .jsonl, which allows that") from None

    def close(self) -> None:
        self._text.detach()


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer: pa.parquet.ParquetWriter | None = None

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        try:
            if self._writer is None:
                table = _without_nulls(pa.Table.from_pylist(list(rows)))
                self._writer = pa.parquet.ParquetWriter(self._file, table.schema)
            else:
                table = pa.Table.from_pylist(list(rows), schema=self._writer.schema)
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"a column holds values of several types ({reason}); write .jsonl instead") from None
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _without_nulls(table: pa.Table) -> pa.Table:
    """A table whose columns that hold nothing so far are of text, the likeliest of what may follow."""
    schema = pa.schema(
        [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]
    )
    return table.cast(schema)
