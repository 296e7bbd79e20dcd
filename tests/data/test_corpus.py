import bz2
import errno
import gzip
import io
import json
import lzma
import os
import re

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from sentence_distill.data import lines, sources, tables
from sentence_distill.data.corpus import Corpus, detect_format
from sentence_distill.data.errors import UserError

COMPRESSORS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
TEXTS = ["A first sentence, with a comma.", 'A second "quoted"\tone.', "Ein dritter: größer & schöner."]


def texts(*locations, **options):
    return [record.text for record in Corpus.open([str(x) for x in locations], **options).records()]


def table_bytes(kind: str, second: list[str] = TEXTS) -> bytes:
    table = pa.table({"other": second, "n": [1, 2, 3], "body": TEXTS})
    sink = io.BytesIO()
    if kind == "parquet":
        pa.parquet.write_table(table, sink)
    elif kind == "csv":
        pa.csv.write_csv(table, sink)
    elif kind == "jsonl":
        rows = [{"n": 1, "other": b, "body": a} for a, b in zip(TEXTS, second, strict=True)]
        sink.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    else:
        with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "arrow-stream", "csv"])
def test_every_table_format_is_read_in_every_compression(tmp_path, kind, suffix):
    path = tmp_path / f"corpus.{kind.removesuffix('-stream')}{suffix}"
    path.write_bytes(COMPRESSORS[suffix](table_bytes(kind)))
    assert texts(path, text_column="body") == TEXTS


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "arrow-stream", "csv"])
def test_two_fields_are_a_pair_in_every_format_with_one_tab_between(tmp_path, kind):
    second = ["Yes.", "A\ttab in it.", ""]
    path = tmp_path / f"corpus.{kind.removesuffix('-stream')}"
    path.write_bytes(table_bytes(kind, second))
    pairs = zip(TEXTS, second, strict=True)
    assert texts(path, text_column="body,other") == [
        f"{a}\t{b}".replace("\tone", " one").replace("A\tt", "A t") for a, b in pairs
    ]
    corpus = Corpus.open([str(path)], text_column="other, body")
    assert corpus.pairs
    whole = list(corpus.records())
    assert whole[0].text == f"Yes.\t{TEXTS[0]}"
    for number, record in enumerate(whole):
        assert list(corpus.records(record.position)) == whole[number:]


def test_a_pair_that_lacks_a_side_is_rejected_with_the_reason(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": "x", "b": "y"}\n{"a": "x"}\n{"b": "y", "a": 1}\n')
    reasons = [record.reason for record in Corpus.open([str(tmp_path / "x.jsonl")], text_column="a,b").records()]
    assert reasons == ["", "no field b", "field a is not a string"]
    pa.parquet.write_table(pa.table({"a": ["x", None], "b": ["y", "z"]}), tmp_path / "x.parquet")
    assert texts(tmp_path / "x.parquet", text_column="a,b") == ["x\ty", None]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("a,b,c", "name one column, or two"),
        ("a,", "name one column, or two"),
        ("a,a", "name one column, or two"),
        ("n,body", "holds int64, not text"),
        ("body,none", "no column 'none'"),
    ],
)
def test_fields_that_make_no_pair_are_an_error(tmp_path, field, message):
    (tmp_path / "x.parquet").write_bytes(table_bytes("parquet"))
    with pytest.raises(UserError, match=message):
        texts(tmp_path / "x.parquet", text_column=field)


def test_plain_text_has_no_pairs(tmp_path):
    (tmp_path / "x.txt").write_text("One side.\tAnother one.\n")
    with pytest.raises(UserError, match=r"x\.txt is read as text, which has no columns"):
        Corpus.open([str(tmp_path / "x.txt")], text_column="a,b")


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_text_is_read_in_every_compression(tmp_path, suffix):
    path = tmp_path / f"corpus.txt{suffix}"
    path.write_bytes(COMPRESSORS[suffix]("\n\n".join(TEXTS).encode()))
    assert [text.strip() for text in texts(path)] == TEXTS


def test_compression_is_found_from_content_where_the_name_does_not_tell(tmp_path):
    path = tmp_path / "corpus"
    path.write_bytes(gzip.compress(b"A sentence in a file without a suffix.\n"))
    assert texts(path) == ["A sentence in a file without a suffix.\n"]


def test_zstd_files_of_several_frames_are_read_to_the_end(tmp_path):
    path = tmp_path / "corpus.txt.zst"
    path.write_bytes(COMPRESSORS[".zst"](b"The first frame.\n") + COMPRESSORS[".zst"](b"The second frame.\n"))
    assert texts(path) == ["The first frame.\n", "The second frame.\n"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_compressed_file_that_was_cut_short_is_an_error_that_names_it(tmp_path, suffix):
    path = tmp_path / f"corpus.txt{suffix}"
    whole = COMPRESSORS[suffix](bytes(range(32, 127)) * 3 + b"\n" + repr(list(range(5000))).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"corpus\.txt\{suffix}"):
        texts(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_the_format_of_a_damaged_file_is_an_error_that_names_it(tmp_path, suffix):
    path = tmp_path / f"x.jsonl{suffix}"
    whole = COMPRESSORS[suffix](b'{"a": "One side.", "b": "Another one."}\n' * 9)
    # Python's decompressors say in errors of their own what is not cut short but wrong.
    for damaged in (whole[: len(whole) // 2], *([whole[:20] + b"\xff" * 20 + whole[40:]] if suffix != ".zst" else [])):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"x\.jsonl\{suffix} can't be read to its end: ."):
            Corpus.open([str(path)], text_column="a,b")


def test_wikiextractor_markup_and_titles_are_no_records_and_headings_are_rejected(tmp_path):
    path = tmp_path / "wiki_00"
    path.write_text(
        '<doc id="1" url="http://x" title="Rock &amp; Roll">\nRock & Roll\n\nRock and roll is a genre of pop music.\n'
        "Early history.\nIt came from the blues in the 1940s and 1950s.\n</doc>\n",
        encoding="utf-8",
    )
    records = list(Corpus.open([str(path)]).records())
    assert [record.text.strip() for record in records if record.text] == [
        "Rock and roll is a genre of pop music.",
        "It came from the blues in the 1940s and 1950s.",
    ]
    assert [(record.reason, record.excerpt) for record in records if not record.text] == [("heading", "Early history.")]


def test_a_title_is_the_first_line_of_its_block_and_no_later_one(tmp_path):
    path = tmp_path / "wiki_00"
    mars = "Mars is the fourth planet of the sun.\n"
    path.write_text(f'<doc id="1" title="Mars">\nMars\n\n{mars}Mars\n{mars}</doc>\n')
    corpus = Corpus.open([str(path)])
    whole = list(corpus.records())
    assert [record.reason for record in whole] == ["", "heading", ""]
    for number, record in enumerate(whole):
        assert list(corpus.records(record.position)) == whole[number:]


def test_byte_order_mark_and_windows_line_ends_leave_no_trace(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"\xef\xbb\xbfThe first line.\r\nThe second line.\r\n")
    assert [text.strip() for text in texts(path)] == ["The first line.", "The second line."]


def test_bytes_that_are_not_utf8_cost_their_line_only(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"A good line.\nBad \xff\xfe bytes.\nAnother good line.\n")
    records = list(Corpus.open([str(path)]).records())
    assert [record.text for record in records] == ["A good line.\n", None, "Another good line.\n"]
    assert (records[1].reason, records[1].position.record) == ("not UTF-8", 1)


def test_an_endless_line_is_rejected_without_reading_it_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_CHARACTERS", 10_000)
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"x" * 30_000 + b"\nA line behind it.\n")
    first, second = Corpus.open([str(path)]).records()
    assert first.reason.startswith("line over")
    assert second.text == "A line behind it.\n"
    assert second.position.offset == 30_001


def test_json_lines_that_hold_no_text_are_rejected_with_their_reason(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "Fine."}\n{"body": "x"}\n[1]\n{"text": 3}\nnot json\n{"text": "\\ud800"}\n')
    reasons = [record.reason for record in Corpus.open([str(path)]).records()]
    assert reasons == [
        "",
        "no field text",
        "not a JSON object",
        "field text is not a string",
        "not JSON",
        "not UTF-8",
    ]


@pytest.mark.parametrize("ahead", ["\n", "not json\n"])
def test_a_field_that_the_first_object_lacks_is_an_error_whatever_stands_before_it(tmp_path, ahead):
    (tmp_path / "x.jsonl").write_text(f'{ahead}{{"body": "One."}}\n{{"text": "Two."}}\n')
    with pytest.raises(UserError, match=r"x\.jsonl, line 2: its first object: no column 'text'; it has body; .*"):
        texts(tmp_path / "x.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.csv", "x.tsv"])
def test_text_in_another_encoding_of_unicode_is_refused_with_the_way_out(tmp_path, name, encoding):
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    (tmp_path / name).write_bytes(f"{mark}text\none\n".encode(encoding))
    kind = encoding[:6].upper()
    with pytest.raises(UserError, match=rf"^{name} is {kind}, not UTF-8; convert it first: iconv -f {kind} -t UTF-8$"):
        texts(tmp_path / name)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "csv"])
def test_a_missing_column_is_an_error_that_lists_the_columns_there_are(tmp_path, kind):
    path = tmp_path / f"corpus.{kind}"
    path.write_bytes(table_bytes(kind))
    with pytest.raises(UserError, match=r"body.*--text-column"):
        texts(path)


def test_csv_cells_may_hold_line_ends(tmp_path):
    path = tmp_path / "corpus.csv"
    path.write_text('id,text\n1,"one\ntwo"\n2,three\n')
    assert texts(path) == ["one\ntwo", "three"]


def test_rows_of_csv_end_in_whatever_ends_a_line(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"id,text\r1,one\r2,two\r")
    assert texts(tmp_path / "x.csv") == ["one", "two"]


def test_a_long_first_line_that_is_no_header_is_an_error_of_readable_length(tmp_path):
    (tmp_path / "x.csv").write_text(f"{'word ' * 40_000}\nmore\n")
    with pytest.raises(UserError, match=r"x\.csv: no column 'text'; it has word word .* …; name one") as error:
        texts(tmp_path / "x.csv")
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
def test_a_column_that_is_there_twice_is_an_error(tmp_path, kind):
    table = pa.table([["a"], ["b"], ["c"]], names=["text", "text", "body"])
    sink = io.BytesIO()
    if kind == "csv":
        sink.write(b"text,text,body\na,b,c\n")
    elif kind == "parquet":
        pa.parquet.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / f"x.{kind}").write_bytes(sink.getvalue())
    with pytest.raises(UserError, match=rf"^x\.{kind} has two columns 'text'; rename one of them$"):
        texts(tmp_path / f"x.{kind}")
    assert texts(tmp_path / f"x.{kind}", text_column="body") == ["c"]


@pytest.mark.parametrize("many", [3, 200_000])
def test_rows_of_csv_with_too_many_or_too_few_cells_are_rejected_in_their_places(tmp_path, many):
    rows = ["1,one"] * many
    for place in (0, 2, many // 2, many):
        rows.insert(place, "2,two,three" if place else "alone")
    rows.append("last,of,all")
    (tmp_path / "x.csv").write_text("id,text\n" + "\n".join(rows))
    corpus = Corpus.open([str(tmp_path / "x.csv")])
    records = list(corpus.records())
    assert [record.position.record for record in records] == list(range(len(rows)))
    assert [record.text or record.excerpt for record in records] == [row.replace("1,one", "one") for row in rows]
    assert {record.reason for record in records if record.text is None} == {"wrong number of cells"}
    for number in (0, 1, 2, many // 2, len(rows) - 1):
        assert list(corpus.records(records[number].position)) == records[number:]


def test_a_long_row_of_csv_is_read(tmp_path):
    (tmp_path / "x.csv").write_text(f"id,text\n1,one\n2,{'long ' * 500_000}\n3,three\n")
    assert [len(text) for text in texts(tmp_path / "x.csv")] == [3, 2_500_000, 5]


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("csv", '2,"two', "line 3: a cell of over 1,000 characters; is a quote there never closed?"),
        ("tsv", f"2\t{'two' * 1000}", "line 3: over 1,000 characters; are line ends missing?"),
    ],
)
def test_an_endless_row_is_an_error_that_says_what_may_be_wrong(tmp_path, monkeypatch, kind, row, message):
    monkeypatch.setattr(tables, "MAX_LINE_CHARACTERS", 1000)
    monkeypatch.setattr(lines, "MAX_LINE_CHARACTERS", 1000)
    header, rows = "id,text\n1,one\n", "3,three\n" * 500
    if kind == "tsv":
        header, rows = header.replace(",", "\t"), rows.replace(",", "\t")
    (tmp_path / f"x.{kind}").write_text(f"{header}{row}\n{rows}")
    with pytest.raises(UserError, match=rf"x\.{kind}, {re.escape(message)}"):
        texts(tmp_path / f"x.{kind}")


def test_a_csv_of_ragged_rows_alone_has_all_of_them_rejected(tmp_path):
    (tmp_path / "x.csv").write_text("text\nHello, world.\nOne, two, three.\n")
    assert [record.excerpt for record in Corpus.open([str(tmp_path / "x.csv")]).records()] == [
        "Hello, world.",
        "One, two, three.",
    ]


def test_folders_and_globs_are_read_in_the_order_of_names(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.txt", "b.txt", "sub/c.txt"]
    assert texts(f"{tmp_path}/[ab].txt") == ["a.txt", "b.txt"]


def test_folders_that_a_glob_matches_are_searched(tmp_path):
    for name in ("AA/wiki_00", "AB/wiki_00", "top"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(f"{tmp_path}/*") == ["AA/wiki_00", "AB/wiki_00", "top"]
    names = [source.name for source in Corpus.open([f"{tmp_path}/A*/wiki*"]).sources]
    assert names == ["AA/wiki_00", "AB/wiki_00"]


@pytest.mark.parametrize("pattern", ["", "/*"])
def test_a_folder_that_can_not_be_listed_is_an_error_that_names_it(tmp_path, monkeypatch, pattern):
    for name in ("a.txt", "all/open/b.txt", "all/shut/c.txt", "all/.hidden/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    shut, listing = {str(tmp_path / "all" / ".hidden")}, os.scandir

    def list_open(path):
        if str(path) in shut:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listing(path)

    # In place of its permissions, which don't bind an administrator.
    monkeypatch.setattr(os, "scandir", list_open)
    assert texts(f"{tmp_path}{pattern}") == ["a.txt", "all/open/b.txt", "all/shut/c.txt"]
    shut.add(str(tmp_path / "all" / "shut"))
    with pytest.raises(UserError, match=r"folder .*/all/shut can't be listed \(Permission denied\)"):
        texts(f"{tmp_path}{pattern}")


@pytest.mark.parametrize("pattern", ["", "/*"])
def test_links_are_followed_once_and_pipes_left_out(tmp_path, pattern):
    corpus = tmp_path / "corpus"
    for name in ("corpus/a.txt", "elsewhere/b.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (corpus / "folder").symlink_to(tmp_path / "elsewhere")
    (corpus / "link.txt").symlink_to(tmp_path / "c.txt")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(corpus / "pipe")
    os.mkfifo(tmp_path / "elsewhere" / "pipe")
    assert texts(f"{corpus}{pattern}") == ["corpus/a.txt", "elsewhere/b.txt", "c.txt"]
    (corpus / "gone.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"can't be opened: .*gone\.txt"):
        texts(f"{corpus}{pattern}")


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "wiki[1].txt").write_text("One line.")
    assert texts(tmp_path / "wiki[1].txt") == ["One line."]


def test_a_table_s_cell_that_is_not_utf8_costs_its_row_only(tmp_path):
    cells = pa.array([b"fine", b"\xff\xfe", b"good"]).view(pa.string())
    pa.parquet.write_table(pa.table({"text": cells}), tmp_path / "x.parquet")
    assert texts(tmp_path / "x.parquet") == ["fine", None, "good"]


def test_fsspec_urls_are_read(tmp_path):
    import fsspec

    with fsspec.open("memory://corpus/x.txt", "w") as file:
        file.write("A line in memory.\n")
    assert texts("memory://corpus/x.txt") == ["A line in memory.\n"]


@pytest.mark.parametrize("name", ["missing.txt", "empty", "none-*.txt"])
def test_a_place_without_a_file_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"does not exist, or holds no file"):
        Corpus.open([str(tmp_path / name)])


@pytest.mark.parametrize("suffix", ["", ".zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_reading_from_any_record_on_gives_the_rest_of_the_same_records(tmp_path, kind, suffix):
    for number in range(2):
        content = table_bytes(kind) if kind != "txt" else "\n".join(TEXTS).encode()
        (tmp_path / f"{number}.{kind}{suffix}").write_bytes(COMPRESSORS[suffix](content))
    corpus = Corpus.open([str(tmp_path)], text_column="body")
    whole = list(corpus.records())
    assert len(whole) == 6
    for number, record in enumerate(whole):
        assert list(corpus.records(record.position)) == whole[number:]


def test_formats_are_found_from_content_before_names(tmp_path):
    for name, content, kind in [
        ("x", table_bytes("parquet"), "parquet"),
        ("y", table_bytes("arrow"), "arrow"),
        ("z.txt", b'<doc id="1" title="T">\nT\n', "wikiextractor"),
        ("u", b'{"text": "x"}\n', "jsonl"),
        ("v.tsv", b"a\ttext\n", "tsv"),
        ("w", b"plain\n", "text"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert detect_format(Corpus.open([str(tmp_path / name)]).sources[0]) == kind


def test_the_run_s_own_files_are_no_corpus_by_whatever_name_its_folder_goes(tmp_path):
    for name in ("a.txt", "shards/plan.json", "shards-of-clay.txt"):
        (tmp_path / "real" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "real" / name).write_text(name)
    (tmp_path / "link").symlink_to("real")
    for corpus in ("link", "real"):
        for out in ("link", "real"):
            found = texts(tmp_path / corpus, leave_out=tmp_path / out / "shards")
            assert found == ["a.txt", "shards-of-clay.txt"], (corpus, out)


def test_a_run_s_own_files_in_an_object_store_are_no_corpus(tmp_path):
    import fsspec
    from upath import UPath

    for name in ("a.txt", "shards/plan.json", "shards-of-clay.txt"):
        with fsspec.open(f"memory://all/{name}", "w") as file:
            file.write(name)
    assert texts("memory://all", leave_out=UPath("memory://all/shards")) == ["a.txt", "shards-of-clay.txt"]
    (tmp_path / "a.txt").write_text("local")
    assert texts(tmp_path, leave_out=UPath(f"memory:/{tmp_path}")) == ["local"]
    assert len(texts("memory://all", leave_out=tmp_path)) == 3


class OfAStore(Exception):
    """Clients of stores raise errors that are no OSError: missing credentials, a dropped connection."""


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("moment", ["isfile", "open", "readinto"])
def test_a_store_that_fails_ends_it_with_its_reason_in_one_line(monkeypatch, moment, suffix):
    import fsspec
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    with fsspec.open(f"memory://corpus/x.txt{suffix}", "wb") as file:
        file.write(COMPRESSORS[suffix](b"A line in memory.\n"))

    def fail(*_, **__):
        raise OfAStore("no credentials\nfound")

    url = f"memory://corpus/x.txt{suffix}"
    opened = Corpus.open([url], format="text")
    if moment == "readinto":
        for method in ("read", "read1", "readinto", "readinto1"):
            monkeypatch.setattr(MemoryFile, method, fail, raising=False)
    else:
        monkeypatch.setattr(MemoryFileSystem, moment, fail)
    with pytest.raises(UserError, match=rf"x\.txt{suffix}'? can't be .*: no credentials found$"):
        list((Corpus.open([url]) if moment == "isfile" else opened).records())
    if moment != "isfile":
        with pytest.raises(UserError, match=rf"x\.txt{suffix} can't be read to its end: no credentials found$"):
            opened.sources[0].content_hash()


def test_between_the_steps_of_a_wait_for_standard_input_a_signal_is_heard(monkeypatch):
    """A read would wait for bytes that may never come."""
    (reading, writing), steps = os.pipe(), []

    def nothing_yet(read, write, failed, seconds):
        steps.append(seconds)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return [], [], []

    with open(reading) as stream, open(writing, "wb") as other:
        monkeypatch.setattr("sys.stdin", stream)
        other.write(b"one\ntwo")
        other.flush()
        ours = sources.standard_input()
        assert ours.readline() == b"one\n"
        monkeypatch.setattr(sources.select, "select", nothing_yet)
        with pytest.raises(KeyboardInterrupt):
            ours.readline()
    assert len(steps) == 3
    assert max(steps) < 1
