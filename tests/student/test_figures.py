"""Files that `sd eval` finds from any folder, and figures that it keeps."""

import json
import os
import shutil
from pathlib import Path

import pytest

from sentence_distill.student.figures import EvalRecord, HeldOut, ModelFigures, Sentences, load_distillation, merged
from sentence_distill.student.files import find_shards
from tests.conftest import contents

PAIRS = "sentence1\tsentence2\tscore\n" + "".join(
    f"The red cat {verb}.\tThe old {animal} ran.\t{score}\n"
    for verb, animal, score in (("ran", "cat", 4), ("saw", "dog", 2), ("built", "road", 1))
)


@pytest.fixture
def home(student_folder, shards, tmp_path):
    """A student next to its shards, not measured yet; the folder that holds both."""
    unmeasured = shutil.ignore_patterns("eval.json", "glue.json", "speed.json", "glue")
    student = shutil.copytree(student_folder, tmp_path / "distilled", ignore=unmeasured)
    shutil.copytree(shards, tmp_path / "shards")
    record(student, "../shards")
    (tmp_path / "dev.tsv").write_text(PAIRS)
    return tmp_path


def record(student, shards):
    content = json.loads((student / "distillation.json").read_text())
    (student / "distillation.json").write_text(json.dumps({**content, "shards": shards}))


def figures(student):
    return json.loads((student / "eval.json").read_text())


def of_student(student):
    found = figures(student)
    return found["models"][found["student"]]


def test_a_student_says_where_its_shards_are_without_a_word_of_the_machine(sd, home, monkeypatch):
    monkeypatch.chdir(home)
    options = ("--embedding-dim", "8", "--hidden", "8", "--max-steps", "2", "--held-out", "0.1")
    assert sd("train-student", "--shards", "shards", "--out", "students/new", *options) == 0
    assert load_distillation(home / "students" / "new")["shards"] == "../../shards"
    assert sd("train-student", "--shards", home / "shards", "--out", "shards-student", *options) == 0
    assert load_distillation(home / "shards-student")["shards"] == "../shards"
    # What is made of it elsewhere finds them, too.
    assert sd("export", "shards-student", "--format", "folder", "--float16", "--out", "deep/down/half") == 0
    assert load_distillation(home / "deep" / "down" / "half")["shards"] == "../../../shards"
    assert sd("export", "deep/down/half", "--format", "folder", "--dim", "8", "--out", "narrow") == 0
    assert load_distillation(home / "narrow")["shards"] == "../shards"


@pytest.mark.parametrize("place", ["../shards", "shards", "{home}/shards"])
def test_shards_are_found_from_any_working_directory(sd, home, monkeypatch, place):
    """As recorded now: relative to the student; and before: relative to the working directory, or absolute."""
    record(home / "distilled", place.format(home=home))
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(home if place == "shards" else elsewhere)
    student = os.path.relpath(home / "distilled")
    assert find_shards(load_distillation(home / "distilled"), home / "distilled").samefile(home / "shards")
    assert sd("eval", student) == 0
    assert of_student(home / "distilled")["held_out"]["rows"] > 50
    assert sd("report", student, "--out", "page.html") == 0
    html = Path("page.html").read_text()
    assert "found by both" in html


def test_a_link_to_a_student_leads_to_its_shards(home, monkeypatch):
    (home / "far").mkdir()
    (home / "far" / "link").symlink_to(home / "distilled")
    monkeypatch.chdir(home / "far")
    assert find_shards(load_distillation(home / "far" / "link"), home / "far" / "link").samefile(home / "shards")


def test_nothing_measured_leaves_the_figures_and_is_no_success(sd, home, capsys):
    assert sd("eval", home / "distilled") == 0
    shutil.move(home / "shards", home / "moved")
    before = contents(home / "distilled")
    capsys.readouterr()
    assert sd("eval", home / "distilled") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: nothing could be measured, and nothing was written (")
    assert f"the student's shards are no longer in {home / 'shards'}; name their folder with --shards" in line
    assert contents(home / "distilled") == before


def test_a_run_adds_its_figures_to_those_that_were_measured_before(sd, home, teacher_folder, capsys):
    student = home / "distilled"
    assert sd("eval", student, "--teacher", teacher_folder) == 0
    first = figures(student)
    assert set(first["skipped"]) == {"STS-B"}
    assert (first["student"], first["teacher"]) == ("distilled", "teacher")
    shutil.move(home / "shards", home / "moved")
    assert sd("eval", student, "--sts", home / "dev.tsv") == 0
    both = figures(student)
    measured, before = both["models"]["distilled"], first["models"]["distilled"]
    assert measured["held_out"] == before["held_out"]
    assert measured["examples"] == before["examples"]
    assert measured["sentences_per_second"] == before["sentences_per_second"]
    assert "sts_spearman" not in both["models"]["teacher"], "it was not here this time"
    assert both["models"]["teacher"]["size"] == first["models"]["teacher"]["size"]
    assert both["skipped"] == {}, "all of it is known, though not all from one run"
    metrics = load_distillation(student)["metrics"]
    assert metrics["held_out"] == measured["held_out"]
    assert metrics["sts_spearman"] == {"student": measured["sts_spearman"]}
    assert set(metrics["sentences_per_second"]) == {"student", "teacher"}
    # Next to another model: what is known of the student and its teacher stays.
    other = shutil.copytree(student, home / "other", ignore=shutil.ignore_patterns("eval.json"))
    assert sd("eval", student, other, "--sts", home / "dev.tsv", "--json", student / "eval.json") == 0
    several = figures(student)
    assert several["student"] == "distilled"
    assert several["models"]["distilled"]["held_out"] == before["held_out"]
    assert "held_out" not in several["models"]["other"]
    rate = first["models"]["teacher"]["sentences_per_second"]
    assert several["models"]["teacher"]["sentences_per_second"] == rate
    # And the other way round.
    assert sd("eval", student, "--sts", home / "dev.tsv") == 0
    again = figures(student)
    assert again["models"].keys() == several["models"].keys()
    assert again["models"]["distilled"]["held_out"] == before["held_out"]
    assert sd("eval", student, "--sts", home / "dev.tsv", "--overwrite") == 0
    assert "held_out" not in of_student(student)


def test_figures_of_a_student_with_other_weights_are_not_kept(sd, home, shards):
    out, student = home / "figures.json", home / "distilled"
    assert sd("eval", student, "--json", out) == 0
    shutil.move(student, home / "before")
    options = ("--embedding-dim", "8", "--hidden", "8", "--max-steps", "2", "--held-out", "0.1")
    assert sd("train-student", "--shards", shards, "--out", student, *options) == 0
    shutil.move(home / "shards", home / "moved")
    record(student, "../shards")
    assert sd("eval", student, "--sts", home / "dev.tsv", "--json", out) == 0
    found = json.loads(out.read_text())["models"]["distilled"]
    assert "held_out" not in found, "those are of the student before"
    assert "sentences_per_second" not in found


def test_held_out_figures_over_other_sentences_do_not_stay_next_to_new_ones():
    def model(weights, **measures):
        return ModelFigures(weights=[weights], **measures)

    models = {
        "a": model("1", held_out=HeldOut(cosine=0.5)),
        "b": model("2", held_out=HeldOut(cosine=0.6), sts_spearman=0.7),
    }
    old = EvalRecord(models=models, reference=Sentences("x", 0.1), skipped={})
    for share, stays in ((0.1, True), (0.2, False)):
        new = {"a": model("1", held_out=HeldOut(cosine=0.8))}
        found = merged(old, EvalRecord(models=new, reference=Sentences("x", share), skipped={})).models
        assert found["a"].held_out == HeldOut(cosine=0.8)
        assert (found["b"].held_out is not None) == stays
        assert found["b"].sts_spearman == 0.7


def test_a_model_that_was_renamed_is_known_by_its_weights():
    old = EvalRecord(models={"a": ModelFigures(weights=["1"], sts_spearman=0.5)}, student="a", skipped={})
    new = EvalRecord(models={"b": ModelFigures(weights=["1"], sentences_per_second=9.0)}, student="b", skipped={})
    assert merged(old, new).models == {"b": ModelFigures(weights=["1"], sts_spearman=0.5, sentences_per_second=9.0)}
    assert merged(old, new).student == "b"
