import gzip

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Examples
from sentence_distill.data.labelled import class_names, examples_of, hold_out, is_score, make_task, read_labelled
from sentence_distill.data.records import Row
from sentence_distill.data.row_writer import open_writer

ROWS = [
    {"text": 'A "red", old cat.', "label": 3},
    {"text": '" a stray mark, eh?', "label": 10},
    {"text": "Ünï.", "label": 3},
]


def _write(path, kind):
    with path.open("wb") as file, open_writer(file, kind) as writer:
        writer.write([Row(f"row {number}", row) for number, row in enumerate(ROWS, start=1)])
    return path


def _files(folder):
    """The same rows in each format."""
    for kind in ("jsonl", "csv", "tsv", "parquet"):
        yield _write(folder / f"rows.{kind}", kind)
    pa.feather.write_feather(pa.Table.from_pylist(ROWS), folder / "rows.arrow", compression="uncompressed")
    yield folder / "rows.arrow"
    (folder / "rows.csv.gz").write_bytes(gzip.compress((folder / "rows.csv").read_bytes()))
    yield folder / "rows.csv.gz"


def test_every_format_gives_the_same_examples(tmp_path):
    for path in _files(tmp_path):
        table = read_labelled(str(path), ("text",), "label")
        assert table.texts == ([row["text"] for row in ROWS],), path
        assert table.labels == ["3", "10", "3"], path
        task = make_task("rows", table, ("text",), "label")
        # 10 comes behind 3: the classes are numbers.
        assert task.labels == ("3", "10")
        assert examples_of(task, table).labels == [0, 1, 0]


def test_labels_of_columns_with_gaps_and_of_booleans_are_as_csv_writes_them(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": ["a", "b"], "number": [1.0, 2.0], "truth": [True, False]})
    pa.parquet.write_table(table, path)
    assert read_labelled(str(path), ("text",), "number").labels == ["1", "2"]
    assert read_labelled(str(path), ("text",), "truth").labels == ["true", "false"]


def test_numbers_of_which_one_is_not_whole_are_scores():
    assert is_score(["1", "2.5", "-3"])
    assert is_score(["1e-3"])
    assert not is_score(["1", "2", "3"])
    assert not is_score(["1.5", "two"])
    assert class_names(["b", "a", "b"]) == ("a", "b")
    assert class_names(["10", "9", "-1"]) == ("-1", "9", "10")
    assert class_names(["10.0", "2.0", "1.0"]) == ("1.0", "2.0", "10.0")


def test_a_label_that_is_no_finite_number_makes_no_scores_of_whole_ones(tmp_path):
    assert not is_score(["1", "2", "nan"])
    assert not is_score(["1", "2", "inf"])
    assert class_names(["1", "2", "nan"]) == ("1", "2", "nan")
    # Of scores it is a mistake, and not a sign that they are classes.
    table = read_labelled(_csv(tmp_path / "a.csv", "text,label", "x,1.5", "y,nan"), ("text",), "label")
    task = make_task("a", table, ("text",), "label")
    with pytest.raises(UserError, match=r"a.csv, line 3: label 'nan' is not a finite number"):
        examples_of(task, table)


def test_a_gap_in_a_column_of_numbers_is_an_empty_label(tmp_path):
    table = pa.table({"text": ["a", "b"], "label": pa.array([1.0, float("nan")])})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, row 2: column 'label' is empty"):
        read_labelled(str(tmp_path / "a.parquet"), ("text",), "label")


def _csv(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"review,label\nx,1\n", "a.csv: no column 'text'; it has review, label"),
        ("a.csv", b"text,stars\nx,1\n", "a.csv, line 2: no column 'label', it has text, stars"),
        ("a.csv", b"text,label\nx,1\n ,0\n", "a.csv, line 3: column 'text' is empty"),
        ("a.csv", b"text,label\nx,1\ny,\n", "a.csv, line 3: column 'label' is empty"),
        ("a.csv", b"text,label\nx,1,2\n", "a.csv, line 2: wrong number of cells"),
        ("a.csv", b'text,label\nx,1\n"y,1\n', "a.csv, line 3: a quote opens there and is never closed"),
        ("a.csv", b"text,label\nx,1\n\xff,1\n", "a.csv, line 3: the text in column 'text' is not UTF-8"),
        ("a.csv", b"text,text\nx,1\n", "a.csv has two columns 'text'"),
        ("a.csv", b"text,label\n", "holds no example"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n[1]\n', "a.jsonl, line 2: not a JSON object"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n\n{"text": "y"}\n', "a.jsonl, line 3: no column 'label', it has text"),
        ("a.jsonl", b'{"text": 7, "label": 1}\n', "a.jsonl, line 1: column 'text' holds 7, not text"),
        ("a.jsonl", b'{"text": "\\ud800", "label": 1}\n', "a.jsonl, line 1: the text in column 'text' is not UTF-8"),
        ("a.jsonl", b'{"text": "x", "label": "\\ud800"}\n', "line 1: the text in column 'label' is not UTF-8"),
        ("a.jsonl", b'{"text": "x", "label": null}\n', "a.jsonl, line 1: column 'label' is empty"),
        (
            "a.jsonl",
            b'{"text": "x", "label": ["a", "b"]}\n',
            "line 1: column 'label' holds a list (multi-label",
        ),
        ("a.jsonl", b'{"text": "x", "label": {"a": 1}}\n', "a.jsonl, line 1: column 'label' holds a dict"),
        ("a.csv", b'text,label\n"a \\"b\\" c",1\n', "a.csv, line 2: quotes inside a cell are escaped by backslashes"),
        ("a.jsonl", b'{"text": "\xff", "label": 1}\n', "a.jsonl, line 1: not UTF-8"),
        ("a.parquet", b"PAR1 and no more", "a.parquet can't be read to its end"),
        # Without the time, which would stand in the test's name and part the workers that collect it.
        (
            "a.csv.gz",
            gzip.compress(b"text,label\n" + b"x,1\n" * 9999, mtime=0)[:-20],
            "a.csv.gz can't be read to its end",
        ),
    ],
)
def test_what_can_t_be_used_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_labelled(str(tmp_path / name), ("text",), "label")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_dev_label_that_training_lacks_is_named_with_its_row(tmp_path):
    train = read_labelled(_csv(tmp_path / "train.csv", "text,label", "x,a", "y,b"), ("text",), "label")
    dev = read_labelled(_csv(tmp_path / "dev.csv", "text,label", "x,a", "y,c"), ("text",), "label")
    task = make_task("train", train, ("text",), "label")
    with pytest.raises(UserError, match=r"dev.csv, line 3: label 'c' does not occur in the training data: a, b"):
        examples_of(task, dev)
    scores = make_task("train", dev, ("text",), "label", regression=True)
    with pytest.raises(UserError, match=r"dev.csv, line 2: label 'a' is not a finite number"):
        examples_of(scores, dev)


def test_one_label_alone_is_no_task(tmp_path):
    table = read_labelled(_csv(tmp_path / "train.csv", "text,label", "x,a", "y,a"), ("text",), "label")
    with pytest.raises(UserError, match="has 2 rows but only one label, 'a'"):
        make_task("train", table, ("text",), "label")


def _examples(*counts):
    labels = [float(number) for number, count in enumerate(counts) for _ in range(count)]
    return Examples(([f"text {i}" for i in range(len(labels))],), labels)


@pytest.fixture
def task(tmp_path):
    table = read_labelled(_csv(tmp_path / "t.csv", "text,label", "x,a", "y,b", "z,c"), ("text",), "label")
    return make_task("t", table, ("text",), "label")


def test_a_tenth_of_each_class_is_held_out(task):
    train, dev = hold_out(task, _examples(200, 50, 50), seed=0)
    assert [dev.labels.count(number) for number in range(3)] == [20, 5, 5]
    assert sorted(train.texts[0] + dev.texts[0]) == sorted(_examples(200, 50, 50).texts[0])
    assert hold_out(task, _examples(200, 50, 50), seed=0)[1].texts == dev.texts
    assert hold_out(task, _examples(200, 50, 50), seed=1)[1].texts != dev.texts


def test_rows_of_one_text_are_never_parted(task):
    once = _examples(100, 60, 40)
    again = Examples(([f" {text.upper()}\u00a0" for text in once.texts[0]],), once.labels)
    examples = Examples((once.texts[0] + again.texts[0],), once.labels + again.labels)
    for seed in range(5):
        train, dev = hold_out(task, examples, seed)
        assert [dev.labels.count(number) for number in range(3)] == [20, 12, 8]
        seen = {text.strip().lower() for text in train.texts[0]}
        assert not seen & {text.strip().lower() for text in dev.texts[0]}
        # A text that is there once is parted as ever.
        assert [text for text in dev.texts[0] if text in once.texts[0]] == hold_out(task, once, seed)[1].texts[0]


def test_a_text_with_two_labels_counts_for_the_rarer_one(task):
    examples = _examples(40, 20)
    doubtful = Examples(([*examples.texts[0], "text 0"],), [*examples.labels, 2.0])
    for seed in range(20):
        # The third class is known from this text alone.
        assert "text 0" not in hold_out(task, doubtful, seed)[1].texts[0]
    with pytest.raises(UserError, match="1 different example, too few"):
        hold_out(task, Examples((["The same."] * 50,), [0.0, 1.0] * 25), seed=0)


def test_pairs_are_the_same_when_both_sides_are(task):
    labels = [float(number % 2) for number in range(40)]
    sides = [f"left {number // 4}" for number in range(40)], [f"right {number // 2 % 2}" for number in range(40)]
    train, dev = hold_out(task, Examples(sides, labels), seed=0)
    assert not set(zip(*train.texts, strict=True)) & set(zip(*dev.texts, strict=True))
    assert set(train.texts[0]) & set(dev.texts[0])


def test_a_single_example_of_a_class_is_trained_on(task):
    for seed in range(5):
        assert hold_out(task, _examples(20, 2, 1), seed)[0].labels.count(2) == 1
    with pytest.raises(UserError, match="3 different examples, too few to hold some out"):
        hold_out(task, _examples(1, 1, 1), seed=0)
