import json
import re
import shlex
import shutil
import sys

import pytest

FOLDER_FILES = ("eval.json", "glue.json", "speed.json")
HOSTILE = '<script>alert("x")</script> & <img src=x onerror=alert(1)>'


@pytest.fixture
def student(student_folder, tmp_path):
    """A copy of the small student of which nothing is measured yet, in whose folder a test may write."""
    measured = shutil.ignore_patterns("eval.json", "glue.json", "speed.json", "glue")
    return shutil.copytree(student_folder, tmp_path / "student", ignore=measured)


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


def test_what_was_not_measured_is_named_with_its_command(sd, student, capsys):
    html = page(sd, student)
    said = capsys.readouterr().out
    for command in ("sd eval", "sd eval --glue --rows all", "sd eval --speed"):
        assert f"{command} --student {student}" in html
        assert f"{command} --student {student}" in said
    assert "<h2" in html
    assert html.count("<figure>") >= 3


def test_shards_that_are_gone_are_said_to_be_gone(sd, student, shards, tmp_path):
    assert "found by both" in page(sd, student, "--shards", shards)
    record = json.loads((student / "distillation.json").read_text())
    (student / "distillation.json").write_text(json.dumps(record | {"shards": str(tmp_path / "gone")}))
    html = page(sd, student)
    assert f"No folder {tmp_path / 'gone'}" in html
    assert "found by both" not in html


def test_shards_that_are_named_must_be_there(sd, student, tmp_path, capsys):
    assert sd("report", student, "--out", tmp_path / "page.html", "--shards", tmp_path / "gone") == 1
    assert f"no folder {tmp_path / 'gone'}" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_text_of_others_cannot_become_markup(sd, student, monkeypatch):
    record = json.loads((student / "distillation.json").read_text())
    record["teacher"]["teacher"] = HOSTILE
    (student / "distillation.json").write_text(json.dumps(record))
    write_glue(student, {"distilled": {"CoLA": [result({"dev": {"matthews": 0.1}})]}})

    from sentence_distill.student.report import data as neighbours

    read = neighbours.Reference.read

    def hostile(*arguments):
        reference = read(*arguments)
        reference.texts[:] = [HOSTILE] * len(reference.texts)
        return reference

    monkeypatch.setattr(neighbours.Reference, "read", hostile)
    html = page(sd, student, "--note", f"CoLA={HOSTILE}", "--title", HOSTILE)
    assert html.count("&lt;script&gt;alert") > 10
    assert html.count("<script") == 1
    assert "<img" not in html


def test_the_same_folder_gives_the_same_bytes(sd, student):
    (student / "eval.json").write_text(json.dumps({"held_out": {"by_length": [part(1, 8), part(9, None)]}}))
    assert page(sd, student) == page(sd, student)


def part(least, most):
    return {"least": least, "most": most, "rows": 10, "cosine": 0.9}


def test_ids_are_unique_and_what_refers_to_them_finds_them(sd, student):
    (student / "eval.json").write_text(json.dumps({"held_out": {"by_length": [part(1, 8), part(9, None)]}}))
    html = page(sd, student, "--note", "QQP=another split")
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html)) <= set(ids)


@pytest.mark.parametrize("name", FOLDER_FILES)
@pytest.mark.parametrize("content", ["{", "[]", '{"held_out": 3, "rows": [3], "threads": "x"}'])
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
    assert f"{student / 'glue.json'} is damaged or of another version" in capsys.readouterr().err


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
        return {"model": model, "threads": {"2": {"by_batch": rates}}, "sts_spearman": quality, "megabytes": 40}

    contenders = {"student (sd, bf16)": contender("student", 0.8, 2000), "teacher": contender("teacher", 0.9, 300)}
    speed = {"threads": [1, 2], "contenders": contenders, "skipped": {"TF-IDF": "no text"}}
    (student / "speed.json").write_text(json.dumps(speed))
    html = page(sd, student)
    assert cells(html, "2. student (sd, bf16)")[:3] == ["0.800", "200", "2,000"]
    assert "<caption>Sentences a second</caption>" in html
    assert "no. 1: 0.9 at 300; no. 2: 0.8 at 2,000" in html


def test_figures_of_several_models_stand_side_by_side(sd, student):
    models = {"student": {"sts_spearman": 0.7}, "mine": {"sts_spearman": 0.8}, "teacher": {"sts_spearman": 0.6}}
    models["teacher 2"] = {"sts_spearman": 0.9}
    figures = {"student": "mine", "teacher": "teacher 2", "models": models, "skipped": {}}
    (student / "eval.json").write_text(json.dumps(figures))
    html = page(sd, student)
    assert cells(html, "STS-B, Spearman, no fine-tuning") == ["0.8000", "0.7000", "0.6000", "0.9000"]
    assert '<span class="value">0.800</span>' in html
    assert "teacher: 0.900" in html


@pytest.mark.parametrize("several", [False, True])
def test_held_out_sentences_of_another_corpus_are_not_shown_as_the_student_s_own(sd, student, several):
    measured = {"held_out": {"cosine": 0.321, "rank_agreement": 0.321, "other_corpus": "other"}, "sts_spearman": 0.7}
    models = {"mine": measured, "minilm": {"held_out": {"rank_agreement": 0.654}, "sts_spearman": 0.8}}
    one = {"held_out": measured["held_out"], "sts_spearman": {"student": 0.7}}
    figures = {"student": "mine", "teacher": "teacher", "models": models, "skipped": {}} if several else one
    (student / "eval.json").write_text(json.dumps(figures))
    html = page(sd, student)
    own = json.loads((student / "distillation.json").read_text())["metrics"]["held_out"]
    assert cells(html, "cosine to the teacher, held out")[0] == f"{own['cosine']:.4g}"
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
    assert "fidelity: more of it is measured by: sd eval" in capsys.readouterr().out


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
        ("eval.json", {"held_out": {"cosine": None}}),
        ("eval.json", {"size": 3}),
        ("glue.json", {"rows": {"distilled": {"RTE": []}}, "finetuning": 3}),
        ("speed.json", {"environment": {"versions": 3}, "threads": [1], "contenders": {}}),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_file(sd, student, capsys, name, content):
    (student / name).write_text(json.dumps(content))
    assert sd("report", student, "--out", student / "report.html") == 1
    assert f"{student / name} is damaged" in capsys.readouterr().err


def test_the_command_of_glue_makes_its_figures_again(sd, student):
    from dataclasses import asdict, replace

    from sentence_distill.cli.eval import evaluate
    from sentence_distill.student.config import STUDENT, TEACHER

    results = [result({"dev": {"accuracy": 0.8}}, seed=seed, fraction=share) for seed in (1, 2) for share in (1.0, 0.1)]
    finetuning = {**asdict(replace(STUDENT, epochs=2, learning_rates=(3e-4, 1e-3))), "synthetic": 500}
    teacher = asdict(replace(TEACHER, epochs=1, learning_rates=(1e-4,)))
    rows = {"scratch": {"RTE": results}, "distilled": {"RTE": results, "SST-2": results}}
    glue = {"source": "a folder of TSV files", "finetuning": finetuning, "teacher_finetuning": teacher, "rows": rows}
    (student / "glue.json").write_text(json.dumps(glue))
    html = page(sd, student)
    command = next(line for line in re.sub("<.*?>", "", html).splitlines() if "sd eval --glue" in line)
    for option in (
        *("--rows scratch,distilled", "--tasks SST-2,RTE", "--seeds 2", "--seed 1", "--train-fraction 1,0.1"),
        *("--epochs 2", "--learning-rate 0.0003,0.001", "--teacher-epochs 1", "--teacher-learning-rate 0.0001"),
        *("--synthetic 500", "--glue-dir GLUE"),
    ):
        assert f" {option}" in command
    assert "--encoder-rate" not in command
    # All of them are options of the command.
    evaluate.make_context("eval", command.split()[2:])


def test_commands_repeat_the_options_that_were_not_the_default(sd, student):
    html = page(sd, student)
    assert "--pooling mean --layers 2 --shard-rows 200 --dtype float32" in html
    assert "--embedding-dim 16 --hidden 16 --layers 1 --batch-size 16 --held-out 0.1" in html
    assert "--weight-decay" not in html


def commands_of(html):
    return [line for line in re.sub("<.*?>", "", html).splitlines() if line.startswith("sd ")]


def test_commands_make_a_reduced_and_fine_tuned_student_step_by_step(sd, student):
    record = json.loads((student / "distillation.json").read_text())
    record["corpus"]["fingerprint"]["dim"] = 64
    record["reduction"] = {"full_dim": 64, "sentences": "a.txt, b.txt", "rows": 100, "dim": 32, "kept": 0.9}
    record |= {"metrics": {"stars": {"dev": {"pearson": 0.9}}}, "glue_task": None, "weights": "float16"}
    (student / "distillation.json").write_text(json.dumps(record))
    task = {"task": "stars", "text_columns": ["a", "b"], "label_column": "stars", "labels": [], "learning_rate": 0.002}
    (student / "task.json").write_text(json.dumps(task))
    html = page(sd, student)
    made = commands_of(html)[1:5]
    assert made[0].endswith("--held-out 0.1 --out STUDENT")
    assert made[1:] == [
        "sd export STUDENT --format folder --dim 32 --corpus a.txt --corpus b.txt --out REDUCED",
        "sd finetune REDUCED --train TRAIN --text-column a,b --label-column stars --regression "
        "--learning-rate 0.002 --out FINETUNED",
        f"sd export FINETUNED --format folder --float16 --out {student}",
    ]
    assert "layer 2, 64 wide" in html, "the teacher's vectors keep their width"
    # Reduced over shards, which have the teacher's vectors, and fine-tuned on GLUE.
    record["reduction"] |= {"sentences": "other", "teacher_rank_agreement": 0.8}
    record |= {"glue_task": "rte", "weights": "float32"}
    (student / "distillation.json").write_text(json.dumps(record))
    (student / "task.json").write_text(json.dumps(task | {"task": "RTE"}))
    assert commands_of(page(sd, student))[2:4] == [
        "sd export STUDENT --format folder --dim 32 --shards other --out REDUCED",
        f"sd finetune REDUCED --task RTE --learning-rate 0.002 --out {student}",
    ]


def test_commands_repeat_options_to_the_last_digit(sd, student):
    from sentence_distill.cli.train_student import train_student

    record = json.loads((student / "distillation.json").read_text())
    record["training"] |= {"learning_rate": 0.0012345678, "train_fraction": 0.3333333333, "max_time": 1e6}
    (student / "distillation.json").write_text(json.dumps(record))
    html = page(sd, student)
    command = next(line for line in re.sub("<.*?>", "", html).splitlines() if "sd train-student" in line)
    parameters = train_student.make_context("train-student", shlex.split(command)[2:]).params
    assert {name: parameters[name] for name in ("learning_rate", "train_fraction", "max_time")} == {
        name: record["training"][name] for name in ("learning_rate", "train_fraction", "max_time")
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--note", "QQP"), 2, "no TASK=TEXT"),
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
