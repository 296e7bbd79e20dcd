import json

import pytest


@pytest.fixture
def glue_dir(tmp_path):
    folder = tmp_path / "glue"
    for task, content in {
        "SST-2": "sentence\tlabel\nthe red cat ran \t1\nthe old dog saw a house \t0\n",
        "RTE": "index\tsentence1\tsentence2\tlabel\n0\tThe cat ran.\tThe dog ran.\tentailment\n",
    }.items():
        (folder / task).mkdir(parents=True)
        (folder / task / "train.tsv").write_text(content)
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_task_s_text_and_its_copies_are_written_without_labels(sd, glue_dir, tmp_path, capsys):
    out = tmp_path / "sst2.jsonl"
    assert sd("augment", "--task", "sst-2", "--glue-dir", glue_dir, "--copies", "9", "--out", out) == 0
    rows = read(out)
    assert rows[:2] == [{"sentence": "the red cat ran "}, {"sentence": "the old dog saw a house "}]
    assert 2 < len(rows) <= 2 + 2 * 9
    assert all(set(row) == {"sentence"} for row in rows)
    assert any("[MASK]" in row["sentence"] for row in rows)
    shown = capsys.readouterr().out
    assert f"2 examples and {len(rows) - 2} different augmented copies" in shown
    assert f"next: sd embed --corpus {out} --text-column sentence --no-split --min-words 1\n" in shown


def test_pairs_have_two_fields_and_the_next_command_names_them(sd, glue_dir, tmp_path, capsys):
    out = tmp_path / "rte.jsonl"
    options = ("--mask", "<mask>", "--copies", "30", "--out", out)
    assert sd("augment", "--task", "RTE", "--glue-dir", glue_dir, *options) == 0
    rows = read(out)
    assert rows[0] == {"sentence1": "The cat ran.", "sentence2": "The dog ran."}
    assert any("<mask>" in row["sentence1"] for row in rows)
    assert "--text-column sentence1,sentence2 --min-words 1\n" in capsys.readouterr().out


def test_the_same_seed_writes_the_same_file(sd, glue_dir, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert sd("augment", "--task", "SST-2", "--glue-dir", glue_dir, "--seed", seed, "--out", tmp_path / name) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_user_s_own_text_and_no_copies(sd, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "text.jsonl"
    text.write_text("Größe zählt.\n\nThe cat ran.\r\n", encoding="utf-8")
    assert sd("augment", "--text", text, "--copies", "0", "--out", out) == 0
    assert read(out) == [{"sentence": "Größe zählt."}, {"sentence": "The cat ran."}]
    text.write_text("a b\tc d\ne\tf\n")
    assert sd("augment", "--text", text, "--copies", "0", "--out", out, "--overwrite") == 0
    assert read(out) == [{"sentence1": "a b", "sentence2": "c d"}, {"sentence1": "e", "sentence2": "f"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\tc\n", "text.txt, line 1 is neither one text nor two"),
        (b"a\nb\t\n", "text.txt, line 2 is neither one text nor two"),
        (b"a\n\nb\tc\n", "text.txt, line 3 is a pair, unlike the lines before it"),
        (b"a\n\xff\n", "text.txt, line 2 can't be read: not UTF-8"),
        (b"\n", "no text in there"),
    ],
)
def test_text_that_is_something_else_is_an_error_and_leaves_the_old_file(sd, tmp_path, capsys, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    (tmp_path / "out.jsonl").write_text("before")
    assert sd("augment", "--text", tmp_path / "text.txt", "--out", tmp_path / "out.jsonl", "--overwrite") == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / "out.jsonl").read_text() == "before"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "either --task or --text"),
        (("--task", "RTE", "--text", "a.txt"), 2, "either --task or --text"),
        (("--text", "a.txt", "--glue-dir", "glue"), 2, "--glue-dir goes with --task"),
        (("--text", "a.txt", "--mask", ""), 2, "--mask is one word"),
        (("--text", "no-such.txt"), 1, "'no-such.txt' is not there"),
        (("--task", "CoLA", "--glue-dir", "glue"), 1, "--glue-dir glue: no CoLA/train.tsv"),
        (("--task", "CoLA", "--glue-dir", "no-such"), 1, "--glue-dir no-such is not there"),
        (("--task", "CoLA"), 1, "--glue-dir"),
        (("--task", "RTE", "--glue-dir", "glue", "--out", "no-such/rte.jsonl"), 1, "there is no folder no-such"),
    ],
)
def test_mistakes_are_named(sd, glue_dir, tmp_path, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(tmp_path)
    assert sd("augment", "--out", "out.jsonl", *options) == code
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["glue"]


def test_a_file_that_is_there_is_replaced_only_when_asked_for_and_the_text_itself_never(sd, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The cat ran.\n")
    (tmp_path / "out.jsonl").write_text("kept")
    assert sd("augment", "--text", text, "--out", tmp_path / "out.jsonl") == 1
    assert "out.jsonl is there already; name another file, or --overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "kept"
    assert sd("augment", "--text", text, "--out", text, "--overwrite") == 1
    assert "text.txt is the input itself" in capsys.readouterr().err
    assert text.read_text() == "The cat ran.\n"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", b"text,label\nThe cat ran.,1\n", "csv"),
        ("a.tsv", b"text\tlabel\nThe cat ran.\t1\n", "tsv"),
        ("a", b'{"text": "The cat ran."}\n', "jsonl"),
        ("a.txt", b"PAR1", "parquet"),
    ],
)
def test_a_table_is_no_text_of_one_s_own(sd, tmp_path, capsys, name, content, kind):
    (tmp_path / name).write_bytes(content)
    assert sd("augment", "--text", tmp_path / name, "--out", tmp_path / "out.jsonl") == 1
    assert f"{name} is {kind}, whose lines would be taken for examples" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
