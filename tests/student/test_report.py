import json
import re
import shutil
import sys
from html import unescape

import pytest

from sentence_distill.student.charts import Series, draw

FOLDER_FILES = ("eval.json", "glue.json", "speed.json")
HOSTILE = '<script>alert("x")</script> & <img src=x onerror=alert(1)>'


@pytest.fixture
def student(student_folder, tmp_path):
    """A copy of the small student of which nothing is measured yet, in whose folder a test may write."""
    measured = shutil.ignore_patterns("eval.json", "glue.json", "speed.json", "glue")
    folder = shutil.copytree(student_folder, tmp_path / "student", ignore=measured)
    # Another test may have measured it: what training itself measured is left.
    record = json.loads((folder / "distillation.json").read_text())
    names = ("rows", "cosine", "mse", "rank_agreement", "mean_vector_cosine")
    held_out = {name: value for name, value in record["metrics"]["held_out"].items() if name in names}
    (folder / "distillation.json").write_text(json.dumps(record | {"metrics": {"held_out": held_out}}))
    return folder


def page(sd, student, *options):
    out = student.parent / "report.html"
    assert sd("report", student, "--out", out, *options) == 0
    return out.read_text(encoding="utf-8")


def result(task_scores, *, seed=0, fraction=1.0, examples=1000):
    return {"seed": seed, "fraction": fraction, "scores": task_scores, "examples": examples}


def write_glue(student, rows):
    (student / "glue.json").write_text(json.dumps({"source": "nyu-mll/glue", "rows": rows, "skipped": {}}))


def cells(html, row):
    """Texts of the cells of a table's row, without marks of footnotes and small letters."""
    named = re.compile(f">{re.escape(row)}\\s*<")
    body = next(part for part in re.findall(r"<tr>.*?</tr>", html, re.DOTALL) if named.search(part))
    body = re.sub(r"<(sup|small)>.*?</\1>", "", body, flags=re.DOTALL)
    return [re.sub("<.*?>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", body, re.DOTALL)]


def test_what_was_not_measured_is_one_line_at_the_end_with_its_commands(sd, student, capsys):
    html = page(sd, student)
    said = capsys.readouterr().out
    (line,) = re.findall('<p class="absent">.*</p>', html)
    for command in ("sd eval", "sd eval --glue --rows all", "sd eval --speed"):
        assert f"<code>{command} {student}</code>" in line
        assert f": {command} {student}\n" in said
    assert f"<code>sd eval --sts dev.tsv {student}</code>" in line
    assert html.index(line) > html.index('id="again"')
    # No empty sections in between.
    assert re.findall('<section id="(.*?)"', html) == ["origin", "curves", "quality", "again", "missing"]
    assert html.count("<figure>") >= 3


def test_nothing_is_said_to_be_missing_once_it_is_measured(sd, student):
    near = [{"text": "A near one.", "cosine": 0.9, "shared": True}]
    figures = {
        "held_out": {"cosine": 0.9, "recall_at_10": 0.5, "rows": 4321},
        "examples": [{"query": "A query.", "teacher": near, "student": near}],
        "sts_spearman": 0.8,
        "sentences_per_second": 900.0,
    }
    write_eval(student, {"student": figures})
    few = result({"dev": {"accuracy": 0.6}}, fraction=0.1, examples=100)
    write_glue(student, {"distilled": {"SST-2": [few, result({"dev": {"accuracy": 0.8}})]}})
    (student / "speed.json").write_text(json.dumps({"threads": [1], "contenders": {}}))
    assert 'id="missing"' not in page(sd, student)


def test_the_verdict_and_the_number_of_held_out_sentences_stand_in_the_tiles(sd, student):
    scores = {"cosine": 0.9, "mean_vector_cosine": 0.2, "recall_at_10": 0.5, "rows": 4321}
    models = {"student": {"held_out": scores, "sts_spearman": 0.8}, "teacher": {"sts_spearman": 0.9}}
    write_eval(student, models)
    tiles = re.findall("<li><span class=.value.>(.*?)</li>", unescape(page(sd, student)))
    shown = [re.sub("<.*?>", "", tile) for tile in tiles]
    assert shown == [
        "0.800 STS-B, Spearman, no fine-tuning 89% of the teacher's 0.900",
        "0.900 mean cosine to the teacher, held out one constant vector: 0.200",
        "50% of the teacher's 10 nearest neighbors found",
        "4,321 held-out sentences never seen in training",
    ]


def test_hashes_stand_at_the_end(sd, student):
    html = page(sd, student)
    record = json.loads((student / "distillation.json").read_text())
    hashes = [*record["teacher"]["teacher_weights"], record["corpus"]["fingerprint"]["corpus_content"]]
    for hash_ in hashes:
        assert html.count(hash_) == 1
        assert html.index(hash_) > html.index('id="again"')


def test_what_the_record_knows_is_shown_without_a_file_of_figures(sd, student):
    """As of a copy of a packaged student."""
    record = json.loads((student / "distillation.json").read_text())
    record["metrics"] |= {"sts_spearman": {"student": 0.6, "teacher": 0.8}}
    record["metrics"] |= {"sentences_per_second": {"student": 900.0}, "timed_as": {"student": "int8"}}
    record["metrics"] |= {"timed_on": {"student": "2 cores of a CPU"}}
    (student / "distillation.json").write_text(json.dumps(record))
    html = unescape(page(sd, student))
    assert "75% of the teacher's 0.800" in html
    assert "Speed measured on 2 cores of a CPU: int8 (student)." in html
    assert "STS-B: <code>" not in html


def test_a_single_point_is_visible():
    one, two = (draw("a", "A", [Series("s", points, markers=False)], x="", y="") for points in ([(1, 2)], [(1, 2)] * 2))
    assert "fill: var(--c1)" in one.svg
    assert "fill: var(--c1)" not in two.svg


def write_eval(student, models, *, of="student", teacher="teacher"):
    figures = {"student": of, "teacher": teacher, "models": models, "skipped": {}}
    (student / "eval.json").write_text(json.dumps(figures))


def test_neighbors_are_those_that_were_recorded(sd, student):
    html = page(sd, student)
    assert f"nearest neighbors (if the shards keep text): <code>sd eval {student}</code>" in html
    assert "found by both" not in html
    near = [
        {"text": "A near one.", "cosine": 0.9, "shared": True},
        {"text": "Another.", "cosine": 0.8, "shared": False},
    ]
    examples = [{"query": "A query.", "teacher": near, "student": near[:1]}]
    write_eval(student, {"student": {"examples": examples}})
    html = page(sd, student)
    assert "1 of 2 found by both" in html
    assert html.count("A near one.") == 2


def test_text_of_others_cannot_become_markup(sd, student):
    record = json.loads((student / "distillation.json").read_text())
    record["teacher"]["teacher"] = HOSTILE
    (student / "distillation.json").write_text(json.dumps(record))
    write_glue(student, {"distilled": {"CoLA": [result({"dev": {"matthews": 0.1}})]}})
    near = [{"text": HOSTILE, "cosine": 0.9, "shared": True}] * 3
    examples = [{"query": HOSTILE, "teacher": near, "student": near}] * 2
    write_eval(student, {"student": {"examples": examples}, HOSTILE: {"sts_spearman": 0.5}})
    html = page(sd, student, "--note", f"CoLA={HOSTILE}", "--title", HOSTILE)
    assert html.count("&lt;script&gt;alert") > 10
    assert html.count("<script") == 1
    assert "<img" not in html


def test_the_same_folder_gives_the_same_bytes(sd, student):
    write_eval(student, {"student": {"held_out": {"by_length": [part(1, 8), part(9, None)]}}})
    assert page(sd, student) == page(sd, student)


def part(least, most):
    return {"least": least, "most": most, "rows": 10, "cosine": 0.9}


def test_ids_are_unique_and_what_refers_to_them_finds_them(sd, student):
    write_eval(student, {"student": {"held_out": {"by_length": [part(1, 8), part(9, None)]}}})
    html = page(sd, student, "--note", "QQP=another split")
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html)) <= set(ids)


@pytest.mark.parametrize("name", FOLDER_FILES)
@pytest.mark.parametrize("content", ["{", "[]", '{"models": 3, "rows": [3], "threads": "x"}'])
def test_a_damaged_file_is_an_error_of_one_line_that_names_it(sd, student, capsys, name, content):
    (student / name).write_text(content)
    assert sd("report", student, "--out", student / "report.html") == 1
    error = capsys.readouterr().err
    assert str(student / name) in error
    assert len(error.strip().splitlines()) == 1
    assert not (student / "report.html").exists()


def test_figures_of_an_earlier_version_are_refused_by_name(sd, student, capsys):
    write_glue(student, {"distilled": {"CoLA": {"task": "CoLA", "scores": {"dev": {"matthews": 0.1}}}}})
    assert sd("report", student, "--out", student / "report.html") == 1
    assert f"{student / 'glue.json'} is damaged or from another version" in capsys.readouterr().err


def test_several_seeds_become_mean_and_deviation_and_the_best_student_is_marked(sd, student):
    accuracies = {"scratch": (0.80, 0.82), "distilled": (0.86, 0.88), "teacher": (0.92,)}
    write_glue(
        student,
        {
            row: {"SST-2": [result({"dev": {"accuracy": value}}, seed=seed) for seed, value in enumerate(values)]}
            for row, values in accuracies.items()
        },
    )
    html = page(sd, student)
    assert cells(html, "distilled") == ["87.0"]
    assert "± 1.4" in html
    assert html.count("<strong>87.0</strong>") == 1
    assert "<strong>92.0</strong>" not in html
    assert cells(html, "BERT-base, test") == ["93.5"]


def test_a_note_stands_at_every_figure_of_its_task_and_at_no_other(sd, student):
    scores = {"QQP": [result({"dev": {"f1": 0.7, "accuracy": 0.8}})], "RTE": [result({"dev": {"accuracy": 0.5}})]}
    write_glue(student, {"scratch": scores, "distilled": scores})
    html = page(sd, student, "--note", "qqp=another split")
    assert html.count('href="#note-1"') == 5, "four in the table, one at the mean of both tasks"
    assert "QQP: another split" in html


def test_shares_of_the_examples_become_curves_and_stay_out_of_the_table(sd, student):
    few = [result({"dev": {"accuracy": 0.6}}, fraction=0.1, examples=100)]
    whole = [result({"dev": {"accuracy": 0.8}}, examples=1000)]
    write_glue(student, {"distilled": {"SST-2": few + whole}, "scratch": {"SST-2": whole}})
    html = page(sd, student)
    assert cells(html, "distilled") == ["80.0"]
    assert "distilled: from 60 at 100 to 80 at 1,000" in html


def test_contenders_are_numbered_alike_in_table_and_charts(sd, student):
    def contender(model, quality, rate):
        rates = {"1": rate / 10, "128": rate}
        return {"model": model, "threads": {"2": {"by_batch": rates}}, "sts_spearman": quality, "megabytes": 40.0}

    contenders = {"student (sd, bf16)": contender("student", 0.8, 2000), "teacher": contender("teacher", 0.9, 300)}
    machine = {"cpu": "a CPU", "cores": 2, "instructions": ["avx2"], "date": "2026-11-29"}
    speed = {"threads": [1, 2], "contenders": contenders, "skipped": {"TF-IDF": "no text"}, "environment": machine}
    (student / "speed.json").write_text(json.dumps({**speed, "sentences": 2000, "rounds": 3}))
    html = page(sd, student)
    assert "Measured on 2 cores of a CPU, with avx2, on 2,000 sentences, median of 3 rounds, 2026-11-29." in html
    assert "<dt>TF-IDF</dt><dd>no text</dd>" in html
    assert cells(html, "2. student (sd, bf16)")[:3] == ["0.800", "200", "2,000"]
    assert "<caption>Sentences per second</caption>" in html
    assert "no. 1: 0.9 at 300; no. 2: 0.8 at 2,000" in html


def test_figures_of_several_models_stand_side_by_side(sd, student):
    models = {"student": {"sts_spearman": 0.7}, "mine": {"sts_spearman": 0.8}, "teacher": {"sts_spearman": 0.6}}
    models["teacher 2"] = {"sts_spearman": 0.9}
    write_eval(student, models, of="mine", teacher="teacher 2")
    html = page(sd, student)
    assert cells(html, "STS-B, Spearman, no fine-tuning") == ["0.8000", "0.7000", "0.6000", "0.9000"]
    assert '<span class="value">0.800</span>' in html
    assert "89% of the teacher&#39;s 0.900" in html


def test_held_out_sentences_of_another_corpus_are_not_shown_as_the_student_s_own(sd, student):
    measured = {"held_out": {"cosine": 0.321, "rank_agreement": 0.321, "other_corpus": "other"}, "sts_spearman": 0.7}
    minilm = {"held_out": {"rank_agreement": 0.654}, "sts_spearman": 0.8}
    write_eval(student, {"mine": measured, "minilm": minilm}, of="mine")
    html = page(sd, student)
    own = json.loads((student / "distillation.json").read_text())["metrics"]["held_out"]
    assert cells(html, "cosine to the teacher")[0] == f"{own['cosine']:.4f}"
    assert cells(html, "STS-B, Spearman, no fine-tuning")[0] == "0.7000"
    assert "0.321" not in html
    assert "0.654" not in html
    assert "eval.json has them of other" in html


def test_figures_of_other_models_are_not_taken_for_the_students(sd, student, capsys):
    models = {"minilm": {"sts_spearman": 0.7, "held_out": {"rank_agreement": 0.4}}}
    (student / "eval.json").write_text(json.dumps({"models": models, "skipped": {}}))
    html = page(sd, student)
    assert cells(html, "STS-B, Spearman, no fine-tuning") == ["", "0.7000"]
    assert '<span class="value">0.700</span>' not in html
    assert f"not measured: speed and size: sd eval {student}" in capsys.readouterr().out


def test_rows_that_share_no_whole_task_have_no_common_mean(sd, student):
    few = result({"dev": {"accuracy": 0.6}}, fraction=0.1, examples=100)
    write_glue(student, {"distilled": {"SST-2": [few]}, "scratch": {"SST-2": [few]}})
    assert "GLUE dev, mean of" not in page(sd, student)
    whole = [result({"dev": {"accuracy": 0.8}})]
    write_glue(student, {"distilled": {"SST-2": whole}, "scratch": {"RTE": whole}})
    assert "GLUE dev, mean of" not in page(sd, student)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("eval.json", {"models": {"student": {"held_out": {"cosine": "high"}}}, "skipped": {}}),
        ("eval.json", {"held_out": {"cosine": 0.5}}),
        ("glue.json", {"rows": {"distilled": {"RTE": [3]}}}),
        ("speed.json", {"environment": {"versions": 3}, "threads": [1], "contenders": {}}),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_file(sd, student, capsys, name, content):
    (student / name).write_text(json.dumps(content))
    assert sd("report", student, "--out", student / "report.html") == 1
    assert f"{student / name} is damaged" in capsys.readouterr().err


def test_commands_are_shown_as_they_were_given(sd, student, shards, tmp_path):
    def add(file, **fields):
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(content | fields))

    copied = shutil.copytree(shards, tmp_path / "shards")
    add(copied / "sources.json", command="sd embed wiki.txt")
    add(student / "distillation.json", shards="../shards", command="sd train-student --size tiny")
    add(student / "eval.json", models={}, skipped={}, command="sd eval")
    add(student / "glue.json", rows={}, command="sd eval --glue --tasks RTE")
    add(student / "speed.json", contenders={}, threads=[1], command="sd eval --speed")
    html = page(sd, student)
    commands = [line for line in re.sub("<.*?>", "", html).splitlines() if line.startswith("sd ")]
    assert commands == [
        *("sd embed wiki.txt", "sd train-student --size tiny"),
        *("sd eval", "sd eval --glue --tasks RTE", "sd eval --speed"),
        f"sd report {student} --out {student.parent / 'report.html'}",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--note", "QQP"), 2, "not TASK=TEXT"),
        (("--note", "ABC=text"), 2, "one of CoLA"),
        (("--out", "no-such/report.html"), 1, "there is no folder no-such"),
    ],
)
def test_mistakes_in_options_are_named(sd, student, capsys, arguments, code, message):
    assert sd("report", student, *arguments) == code
    assert message in capsys.readouterr().err


def test_a_folder_without_student_is_named(sd, tmp_path, capsys):
    assert sd("report", tmp_path / "none") == 1
    assert "sd train-student" in capsys.readouterr().err


def test_without_matplotlib_the_package_is_named(sd, student, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert sd("report", student, "--out", student / "report.html") == 1
    assert "pip install matplotlib" in capsys.readouterr().err
