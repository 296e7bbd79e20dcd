"""Files of kinds that people have: what each is found to be, and what is read of it, by every command alike."""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard

from sentence_distill.data.corpus import Corpus, detect_format
from sentence_distill.data.errors import UserError
from sentence_distill.data.labelled import read_labelled
from sentence_distill.data.lines import is_heading
from sentence_distill.data.sentences import SentenceRules, count_words, split_sentences
from tests.conftest import make_sentences

LINES = make_sentences(12)
FIRST, SECOND = ("".join(f"{line}\n" for line in part).encode() for part in (LINES[:6], LINES[6:]))
SKIPPABLE = struct.pack("<II", 0x184D2A53, 4) + b"size"


def texts(location, **options):
    return [record.text.strip() for record in Corpus.open([str(location)], **options).records() if record.text]


def rows(location):
    return [row.text("text").strip() for row in Corpus.open([str(location)]).rows()]


def _lz4(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "lz4": _lz4,
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_stream_of_a_compressed_file_is_read(tmp_path, suffix):
    path = tmp_path / f"x.txt.{suffix}"
    path.write_bytes(COMPRESS[suffix](FIRST) + COMPRESS[suffix](SECOND))
    assert texts(path) == rows(path) == LINES


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("xz", lzma.compress(FIRST) + b"\0" * 8 + lzma.compress(SECOND) + b"\0" * 4),
        ("gz", gzip.compress(FIRST) + gzip.compress(SECOND) + b"\0" * 512),
        ("lzma", lzma.compress(FIRST + SECOND, lzma.FORMAT_ALONE)),
        ("zst", SKIPPABLE + COMPRESS["zst"](FIRST) + SKIPPABLE + COMPRESS["zst"](SECOND) + SKIPPABLE),
    ],
    ids=["xz padding", "gzip padding", "lzma alone", "zstd skippable frames"],
)
def test_padding_and_frames_without_content_are_no_end(tmp_path, suffix, content):
    (tmp_path / f"x.txt.{suffix}").write_bytes(content)
    assert texts(tmp_path / f"x.txt.{suffix}") == LINES
    # Whatever its name is.
    (tmp_path / "x").write_bytes(content)
    assert texts(tmp_path / "x") == LINES


def _damage(content, place):
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


@pytest.mark.parametrize("damaged", ["magic", "inside", "cut", "garbage"])
@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_damage_in_a_later_stream_is_an_error_that_names_the_file(tmp_path, suffix, damaged):
    second = COMPRESS[suffix](SECOND)
    second = {
        "magic": _damage(second, 0),
        "inside": _damage(second, len(second) // 2),
        "cut": second[: len(second) // 2],
        "garbage": b"no stream at all",
    }[damaged]
    (tmp_path / f"x.txt.{suffix}").write_bytes(COMPRESS[suffix](FIRST) + second)
    with pytest.raises(UserError, match=rf"x\.txt\.{suffix} can't be read to its end"):
        texts(tmp_path / f"x.txt.{suffix}")


def _tar(name="a.txt", compress=lambda data: data):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(FIRST)
        archive.addfile(info, io.BytesIO(FIRST))
    return compress(stream.getvalue())


def _zip():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", FIRST)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.tar", _tar(), "a tar archive"),
        ("a.tar.gz", _tar(compress=gzip.compress), "a tar archive"),
        ("a.tar.zst", _tar(compress=COMPRESS["zst"]), "a tar archive"),
        ("a.zip", _zip(), "a zip archive"),
        ("a.docx", _zip(), "an Office file"),
        ("a.txt", _zip(), "a zip archive"),
        ("a.txt.gz", gzip.compress(gzip.compress(FIRST)), "compressed twice"),
        ("a.pdf", b"%PDF-1.7\n1 0 obj\n<< >>\nendobj\n", "a PDF"),
        ("a.txt", b"\n<!DOCTYPE html>\n<html><body>A page.</body></html>", "an HTML page"),
        ("a.html", b"<!-- saved -->\n<html lang='en'><p>A page.", "an HTML page"),
        ("a.xml", b'<?xml version="1.0"?>\n<feed><p>A page.</p></feed>', "XML"),
        ("dump", b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">', "WikiExtractor"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "an image"),
        ("a.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF", "an image"),
        ("a.rtf", rb"{\rtf1\ansi A page.}", "RTF"),
        ("a.db", b"SQLite format 3\0" + bytes(100), "an SQLite database"),
        ("a.npy", b"\x93NUMPY\x01\0", "a NumPy array"),
        ("a.bin", bytes(range(256)) * 4, "a binary file"),
        ("a.txt", "Text of another encoding.\n".encode("utf-16-le"), "UTF-16LE, not UTF-8"),
        ("a.csv", "text\nOf another encoding.\n".encode("utf-16-be"), "UTF-16BE, not UTF-8"),
        ("a.parquet", b"no table", "has the suffix of parquet but another content"),
    ],
)
def test_what_is_no_text_is_refused_by_what_it_is(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    for read in (texts, rows, lambda path: read_labelled(str(path), ("text",), "label")):
        with pytest.raises(UserError, match=what) as error:
            read(tmp_path / name)
        assert name in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"RIFF is a word.\n", b"ORC\nA list.\n", b"GIF8 is one.\n", b"a\0b c\n"])
def test_letters_that_could_be_a_magic_number_are_text(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert detect_format(Corpus.open([str(tmp_path / "a.txt")]).sources[0]) == "text"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv"])
def test_lines_end_alike_in_every_format_and_for_every_command(tmp_path, end, kind):
    header = [] if kind in ("txt", "jsonl") else ["text"]
    lines = [json.dumps({"text": line}) for line in LINES] if kind == "jsonl" else LINES
    path = tmp_path / f"x.{kind}"
    path.write_bytes(end.join([*header, *lines]).encode())
    assert texts(path) == rows(path) == LINES
    # From each record on reading gives the rest.
    corpus = Corpus.open([str(path)])
    for number, record in enumerate(corpus.records()):
        assert [other.text.strip() for other in corpus.records(record.position)] == LINES[number:]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x"])
def test_a_json_array_is_read_object_by_object(tmp_path, name, indent, suffix):
    text = json.dumps([{"text": line, "n": 1} for line in LINES], indent=indent, ensure_ascii=False)
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
    assert texts(path) == rows(path) == LINES
    corpus = Corpus.open([str(path)])
    for number, record in enumerate(corpus.records()):
        assert [other.text for other in corpus.records(record.position)] == LINES[number:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"text": "One."}, {"text": "Two',
            "object 2, which begins at byte 20, is not JSON, or the array",
        ),
        ('[{"text": "One."} {"text": }]', "object 2"),
        ('{\n "data": [{"text": "One."}]\n}', "jq"),
        ('[{"body": "One."}]', "no column 'text'; it has body"),
    ],
)
def test_json_that_can_not_be_read_says_where_and_what_to_do(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=message):
        texts(tmp_path / "x.json")


def test_a_long_line_is_read_by_all(tmp_path):
    book = "A word. " * 400_000
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": book, "label": "long"}) + "\n")
    assert [len(text) for text in texts(tmp_path / "x.jsonl")] == [len(book) - 1]
    assert [len(text) for text in rows(tmp_path / "x.jsonl")] == [len(book) - 1]
    assert len(read_labelled(str(tmp_path / "x.jsonl"), ("text",), "label").texts[0][0]) == len(book)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'id,text\n1,"said \\"good work\\" to us"\n2,plain\n',
            "line 2: quotes .* are escaped by backslashes",
        ),
        (b'id,text\n1,one\n2,"never closed\n3,three\n4,four\n', "line 3: a quote opens there and is never closed"),
        (b'id,text\n1,"two\nlines","\n2,never closed\n', "line 2: a quote opens there and is never closed"),
        (b'id,text\n1,one\n2,"closed" and more\n', "line 3: there is text after a cell's closing quote"),
        (b"id,text\n1,one\n2,two,three\n", "x.csv, line 3: wrong number of cells"),
    ],
)
def test_csv_that_joins_or_cuts_rows_is_the_same_error_for_every_command(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    readers = [rows, lambda path: read_labelled(str(path), ("text",), "id")]
    # Embedding goes on behind a row that it can't use, and counts it.
    for read in readers if "wrong number" in message else [texts, *readers]:
        with pytest.raises(UserError, match=message):
            read(tmp_path / "x.csv")


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_a_csv_is_parted_by_what_parts_its_header(tmp_path, mark):
    (tmp_path / "x.csv").write_text(f"id{mark}text\n1{mark}One, two; three.\n")
    assert texts(tmp_path / "x.csv") == (["One, two; three."] if mark in "\t|" else texts(tmp_path / "x.csv"))
    (tmp_path / "y.csv").write_text(f'id{mark}text\n1{mark}"One, two; three."\n')
    assert texts(tmp_path / "y.csv") == rows(tmp_path / "y.csv") == ["One, two; three."]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string()])
@pytest.mark.parametrize("dictionary", [False, True])
def test_text_of_parquet_is_read_whatever_its_type_says(tmp_path, kind, dictionary):
    column = pa.array([line.encode() for line in LINES], pa.binary()).cast(kind)
    column = column.dictionary_encode() if dictionary else column
    parquet.write_table(pa.table({"text": column, "n": list(range(12))}), tmp_path / "x.parquet", row_group_size=5)
    assert texts(tmp_path / "x.parquet") == rows(tmp_path / "x.parquet") == LINES
    corpus = Corpus.open([str(tmp_path / "x.parquet")])
    start = list(corpus.records())[7].position
    assert [record.text for record in corpus.records(start)] == LINES[7:]


def test_a_saved_dataset_is_its_rows_and_several_splits_ask_which(tmp_path):
    dataset = datasets.Dataset.from_dict({"text": LINES})
    dataset.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    dataset.map(lambda row: {"n": 1}, cache_file_name=str(tmp_path / "saved" / "cache-1.arrow"))
    assert texts(tmp_path / "saved") == rows(tmp_path / "saved") == LINES
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(UserError, match="is a saved DatasetDict with the splits test, train; name one of its folders"):
        texts(tmp_path / "splits")
    assert texts(tmp_path / "splits" / "train") == LINES


def test_a_clone_of_a_dataset_is_its_data_files_and_it_says_what_was_left_out(tmp_path):
    for name in ("README.md", "LICENSE", "dataset.py", "data/notes.yaml", ".gitattributes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("A sentence about the data.\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    parquet.write_table(pa.table({"text": LINES}), tmp_path / "data" / "train-00000.parquet")
    (tmp_path / "data" / "more.txt").write_bytes(b"A line of text.\n")
    said = []
    corpus = Corpus.open([str(tmp_path)], log=said.append)
    assert [source.name for source in corpus.sources] == ["data/more.txt", "data/train-00000.parquet"]
    assert said == [f"skipped in {tmp_path}, not data: LICENSE and 4 more"]


def test_shards_inside_a_folder_of_text_make_it_no_folder_of_tables(tmp_path):
    (tmp_path / "wiki_00").write_bytes(FIRST)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shard-00000.arrow").write_bytes(b"")
    assert texts(tmp_path, leave_out=tmp_path / "shards") == LINES[:6]


@pytest.mark.parametrize("name", ["a::b.txt", "a#b.txt", "a b.txt", "a*b.txt", "[a].txt", "hf:x.txt", "%20.txt"])
def test_nothing_in_the_name_of_a_local_file_is_syntax(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(FIRST)
    assert texts(name) == texts(tmp_path / name) == texts(tmp_path) == LINES[:6]


def test_a_file_inside_an_archive_is_read_as_fsspec_names_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deep/x.txt", FIRST)
        archive.writestr("deep/y.txt", SECOND)
    assert texts(f"zip://deep/x.txt::{tmp_path}/a.zip") == LINES[:6]
    assert texts(f"zip://deep/*.txt::{tmp_path}/a.zip") == LINES
    assert texts(f"zip://deep::{tmp_path}/a.zip") == LINES


def _doc(title, *lines):
    return f'<doc id="1" url="u" title="{title}">\n{title}\n\n' + "\n".join(lines) + "\n\n</doc>\n"


def test_entities_of_wikiextractor_are_the_characters_of_the_article(tmp_path):
    lines = [
        "Smith &amp; Sons was a firm of printers in town.",
        "In HTML a blank is &amp;nbsp; when x &lt; 5 holds.",
    ]
    (tmp_path / "wiki").write_text(_doc("The Rise &amp; Fall of the Great Old Mill", *lines))
    expected = ["Smith & Sons was a firm of printers in town.", "In HTML a blank is &nbsp; when x < 5 holds."]
    assert texts(tmp_path / "wiki") == expected


def test_wikiextractor_s_json_is_read_as_its_other_output(tmp_path):
    lines = [
        "The mill stands at the river since 1730.",
        "See also.",
        "List of all mills in the old county",
        "It is &gt; 9 m high now.",
    ]
    (tmp_path / "doc").write_text(_doc("Old mill", *lines))
    article = {"id": "1", "revid": "2", "url": "u", "title": "Old mill", "text": "\n".join(["Old mill", *lines])}
    (tmp_path / "json").write_text(json.dumps(article) + "\n")
    as_doc = [record.text for record in Corpus.open([str(tmp_path / "doc")]).records() if record.text]
    (record,) = Corpus.open([str(tmp_path / "json")]).records()
    assert record.text.split("\n") == as_doc == [lines[0], "It is > 9 m high now."]
    assert record.headings == ("See also.", "List of all mills in the old county")
    # A row is what it is: the article as it stands.
    (row,) = Corpus.open([str(tmp_path / "json")]).rows()
    assert row.cells == article


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("History", True),
        ("Early life and education.", True),
        ("Rise and fall of the first Bulgarian empire under Simeon", True),
        ("It was built by a farmer who sold flour to the town.", False),
        ("历史", True),
        ("参考文献和外部链接.", True),
        ("茶是一种用茶树的叶子制成的饮料。", False),
        ("お茶は木の葉から作られる飲み物です。", False),
        ("ประวัติศาสตร์", True),
        ("ชาเป็นเครื่องดื่มที่ทำจากใบชาซึ่งเป็นที่นิยมในหลายประเทศทั่วโลก", False),
        ("စာတမ်း", True),
        ("ဤသည်မှာ မြန်မာစာကြောင်း တစ်ကြောင်း ဖြစ်သည်။", False),
        ("चाय एक लोकप्रिय पेय है जो पूरी दुनिया में पिया जाता है।", False),
    ],
)
def test_headings_are_told_in_any_script(line, heading):
    assert is_heading(line) == heading


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("One two three", 3),
        ("茶是一种饮料。", 3),
        ("ชาเป็นเครื่องดื่มที่", 5),
        ("GPU 用于训练神经网络模型", 6),
        ("Größe über alles", 3),
    ],
)
def test_words_are_counted_in_scripts_without_blanks(sentence, words):
    assert count_words(sentence) == words


def test_sentences_of_chinese_pass_the_rules():
    text = "茶是一种用茶树的叶子制成的饮料，在亚洲很多国家都非常受欢迎。人们每天早上喝一杯热茶。"
    found = list(split_sentences(text, SentenceRules(language="zh")))
    assert [candidate.reason for candidate in found] == ["", ""]


@pytest.mark.parametrize("language", ["xx", "english", "EN", "", "e"])
def test_a_language_that_is_none_is_refused(language):
    with pytest.raises(UserError, match="--language"):
        SentenceRules(language=language)
    assert SentenceRules(language="de-at").language == "de-at"
