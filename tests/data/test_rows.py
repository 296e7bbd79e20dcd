import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet
import pytest

from sentence_distill.data.corpus import Corpus, detect_format
from sentence_distill.data.errors import UserError
from sentence_distill.data.labelled import read_labelled
from sentence_distill.data.records import Position, Row
from sentence_distill.data.row_writer import open_writer
from sentence_distill.data.sources import find_sources
from sentence_distill.data.tables import read_table


def _write(path, kind, *chunks):
    """Write rows, which are called row 1 and so on."""
    number = 0
    with path.open("wb") as file, open_writer(file, kind) as writer:
        for chunk in chunks:
            writer.write([Row(f"row {number + n}", cells) for n, cells in enumerate(chunk, start=1)])
            number += len(chunk)
    return path


def _rows(path):
    source = find_sources([str(path)])[0]
    return list(read_table(source, detect_format(source), Position(), ()))


def _cells(path):
    return [row.cells for row in _rows(path)]


def test_rows_keep_all_columns_and_know_their_line(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "more": [1, None]}) + "\n")
    (row,) = _rows(tmp_path / "a.jsonl")
    assert row.cells == {"text": "x", "more": [1, None]}
    assert row.where == "a.jsonl, line 1"


def test_quotation_marks_in_tsv_are_text(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n" it is great\t1\nbad film\t0\nok "\t1\n"all of it"\t0\n')
    texts = ['" it is great', "bad film", 'ok "', '"all of it"']
    table = read_labelled(str(tmp_path / "a.tsv"), ("text",), "label")
    assert table.texts == (texts,)
    assert table.labels == ["1", "0", "1", "0"]
    corpus = Corpus.open([str(tmp_path / "a.tsv")])
    assert [record.text for record in corpus.records()] == texts


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_csv_keeps_line_ends_inside_a_cell(tmp_path, end):
    rows = [{"text": f"two{end}lines", "label": "1"}, {"text": "one", "label": "2"}]
    assert _cells(_write(tmp_path / "a.csv", "csv", rows)) == rows


@pytest.mark.parametrize("cell", ["a\tb", "a\nb", "a\rb"])
def test_tsv_refuses_what_would_part_a_cell(tmp_path, cell):
    with pytest.raises(UserError, match=r"^row 2: a tab or line end in a cell, .* write .csv or .jsonl$"):
        _write(tmp_path / "a.tsv", "tsv", [{"text": "x"}, {"text": cell}])
    with pytest.raises(UserError, match=r"^row 1: a tab or line end in a cell"):
        _write(tmp_path / "a.tsv", "tsv", [{cell: "x"}])


def test_a_cell_as_long_as_a_line_may_be_is_read(tmp_path):
    rows = [{"text": "word " * 40_000, "label": "1"}]
    for kind in ("csv", "tsv"):
        assert _cells(_write(tmp_path / f"a.{kind}", kind, rows)) == rows


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize(("cell", "name"), [([], "a list"), ([1, "x"], "a list"), ({"b": 1}, "an object")])
def test_lists_and_objects_are_no_cells(tmp_path, kind, cell, name):
    with pytest.raises(UserError, match=rf"^row 2: a column holds {name}, which a cell can't hold; write \.jsonl$"):
        _write(tmp_path / f"a.{kind}", kind, [{"a": None}, {"a": cell}])


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"a": 1}, "^row 2: there is no column 'b'; write .jsonl"),
        ({"a": 1, "b": 2, "c": 3}, "^row 2: the first row has no column 'c'; write .jsonl"),
    ],
)
def test_tables_refuse_a_row_of_other_columns(tmp_path, kind, second, message):
    with pytest.raises(UserError, match=message):
        _write(tmp_path / f"a.{kind}", kind, [{"a": 1, "b": 2}, second])


def test_json_lines_keep_rows_of_other_columns(tmp_path):
    rows = [{"a": 1, "b": 2}, {"c": [3]}]
    assert _cells(_write(tmp_path / "a.jsonl", "jsonl", rows)) == rows


@pytest.mark.parametrize(
    ("first", "second"),
    [({"a": 1}, {"a": 1, "b": 2}), ([{"a": 1}], [{"a": 1, "b": 2}]), (1, "one"), (1, 1.5), (1, 2**63), (1, {})],
)
def test_parquet_refuses_later_rows_that_its_types_can_t_hold(tmp_path, first, second):
    with pytest.raises(UserError, match=r"^row 2 and after: .* write .jsonl instead$"):
        _write(tmp_path / "a.parquet", "parquet", [{"x": first}], [{"x": second}])


def test_a_table_s_types_are_those_of_the_file_that_its_rows_are_from(tmp_path):
    table = pa.table(
        {
            "large": pa.array([2**63, 1, 2], pa.uint64()),
            "small": pa.array([1, None, 3], pa.int8()),
            "late": pa.array([None, None, 2.5], pa.float32()),
            "never": pa.nulls(3),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "time": pa.array([1, 2, 3], pa.timestamp("ns", tz="UTC")),
            "map": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int16())),
        }
    )
    pa.parquet.write_table(table, tmp_path / "in.parquet")
    rows = [replace(row, cells={**row.cells, "new": "x"}) for row in _rows(tmp_path / "in.parquet")]
    with (tmp_path / "out.parquet").open("wb") as file, open_writer(file, "parquet") as writer:
        writer.write(rows[:2])
        writer.write(rows[2:])
    found = pa.parquet.read_table(tmp_path / "out.parquet")
    expected = table.append_column("new", pa.array(["x"] * 3))
    assert found.schema == expected.schema
    assert found.to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_text_that_is_not_unicode_is_named_with_its_row(tmp_path, kind):
    with pytest.raises(UserError, match=r"^row 2: column 'a' holds invalid Unicode; correct that row$"):
        _write(tmp_path / f"a.{kind}", kind, [{"a": "x"}, {"a": "\ud800"}])
    with pytest.raises(UserError, match=r"^row 1: column .* holds invalid Unicode; correct that row$"):
        _write(tmp_path / f"a.{kind}", kind, [{"\ud800": "x"}])


def test_text_inside_a_list_that_is_not_unicode_is_named_too(tmp_path):
    for kind in ("jsonl", "parquet"):
        with pytest.raises(UserError, match=r"^row 1: column 'a' holds invalid Unicode"):
            _write(tmp_path / f"a.{kind}", kind, [{"a": [{"b": "\udfff"}]}])


def test_json_has_null_where_a_number_is_not_finite(tmp_path):
    rows = [{"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": float("-inf")}}]
    path = _write(tmp_path / "a.jsonl", "jsonl", rows)
    assert path.read_text() == '{"a": null, "b": [null, 1.5], "c": {"d": null}}\n'


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_bytes_are_refused_where_there_is_only_text(tmp_path, kind):
    with pytest.raises(UserError, match=r"^row 2: a column holds bytes, .*; write .parquet$"):
        _write(tmp_path / f"a.{kind}", kind, [{"a": "x"}, {"a": b"\xff"}])


def _arrow(path, column):
    with pa.ipc.new_file(path, pa.schema([("x", column.type)])) as file:
        file.write(pa.record_batch([column], names=["x"]))
    return path


def test_a_value_that_python_has_not_is_named_with_its_place(tmp_path):
    path = _arrow(tmp_path / "a.arrow", pa.array([2**60], pa.timestamp("s")))
    with pytest.raises(UserError, match=r"^a.arrow, row 1 and after: a value can't be read \(.*\)$"):
        _rows(path)


def test_text_of_a_table_that_is_not_utf8_costs_its_row_only(tmp_path):
    path = _arrow(tmp_path / "a.arrow", pa.array([b"good", b"\xff"]).view(pa.string()))
    first, second = _rows(path)
    assert first.text("x") == "good"
    with pytest.raises(UserError, match=r"^a.arrow, row 2: the text in column 'x' is not UTF-8; correct that row$"):
        second.text("x")


def test_a_type_that_parquet_has_not_is_refused(tmp_path):
    column = pa.array([None], pa.month_day_nano_interval())
    row = Row("row 1", {"x": None}, pa.schema([("x", column.type)]))
    message = pytest.raises(UserError, match=r"^row 1 and after: .* write .jsonl instead$")
    with (tmp_path / "a.parquet").open("wb") as file, message, open_writer(file, "parquet") as writer:
        writer.write([row])
