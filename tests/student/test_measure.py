import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sentence_distill
from sentence_distill.cli.eval import print_texts
from sentence_distill.data.errors import UserError
from sentence_distill.data.tokenization import Tokens
from sentence_distill.student.card import model_card
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.evaluate import Reference
from sentence_distill.student.figures import Environment, HeldOut, load_distillation
from sentence_distill.student.metrics import (
    by_frequency,
    by_length,
    nearest_examples,
    rank_agreement,
    rarest_counts,
    recall_figures,
)
from sentence_distill.student.model import encode_tokens
from sentence_distill.student.models import (
    find_model,
    find_teacher,
    megabytes,
    open_model,
    open_teacher,
    parameters,
    short_names,
)
from tests.conftest import make_sentences


def neighbours(vectors: torch.Tensor, row: int, k: int) -> set[int]:
    """The k nearest other rows, one cosine at a time."""
    cosines = torch.nn.functional.cosine_similarity(vectors[row : row + 1], vectors)
    return set([other for other in cosines.argsort(descending=True).tolist() if other != row][:k])


def test_recall_counts_the_neighbours_that_both_find(monkeypatch):
    monkeypatch.setattr("sentence_distill.student.metrics._CHUNK_ROWS", 7)
    monkeypatch.setattr("sentence_distill.student.figures.FEWEST_ROWS", 50)
    monkeypatch.setattr("sentence_distill.student.metrics.CANDIDATES", 20)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(50, 8, generator=generator)
    vectors = torch.cat([targets[:, :4], torch.randn(50, 1, generator=generator)], dim=1)
    found = {
        among: np.mean([len(neighbours(targets, row, 10) & neighbours(vectors, row, among)) / 10 for row in range(50)])
        for among in (10, 20)
    }
    assert 0.2 < found[10] < found[20] < 0.99
    assert list(recall_figures(vectors, targets).values()) == pytest.approx([found[10], found[20]])
    assert list(recall_figures(targets, targets).values()) == [1, 1]


def test_few_rows_have_no_recall_and_three_are_the_fewest_that_have_ranks():
    targets = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    assert recall_figures(targets, targets) == {"recall_at_10": 1, "recall_at_10_among_100": 1}
    assert recall_figures(targets[:199], targets[:199]) == {}
    assert rank_agreement(targets[:3], targets[:3]) == pytest.approx(1)
    assert rank_agreement(torch.ones(5, 3), targets[:5]) == 0, "a student that says the same of all has no ranks"
    for rows in (1, 2):
        with pytest.raises(ValueError, match="at least 3 rows"):
            rank_agreement(targets[:rows], targets[:rows])


@pytest.fixture
def few_are_enough(monkeypatch):
    """Let recall be measured over the few held-out sentences of the small corpus."""
    monkeypatch.setattr("sentence_distill.student.figures.FEWEST_ROWS", 3)


def test_recall_over_few_held_out_sentences_is_not_measured_and_that_is_said(
    sd, student_folder, teacher_folder, shards, tmp_path, capsys
):
    folder = shutil.copytree(student_folder, tmp_path / "student", ignore=shutil.ignore_patterns("eval.json"))
    rows = load_distillation(folder)["metrics"]["held_out"]["rows"]
    reason = f"not measured ({rows} held-out sentences; 200 are needed)"
    shown = run(sd, capsys, folder, "--shards", shards, "--json", tmp_path / "eval.json")
    assert reason in shown
    assert f"recall@10: {reason}" in shown
    assert re.search(rf"held-out sentences +{rows} ", shown)
    (figures,) = json.loads((tmp_path / "eval.json").read_text())["models"].values()
    held_out = figures["held_out"]
    assert not any("recall" in name for name in held_out)
    assert reason in (folder / "README.md").read_text(encoding="utf-8")
    assert sd("report", folder, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "recall@10: needs at least 200 held-out sentences" in page
    assert f'<span class="value">{rows}</span> <span class="name">held-out sentences</span>' in page
    assert "nearest neighbors found" not in page
    assert sd("export", folder, "--dim", "8,16", "--shards", shards) == 0
    assert f"recall@10: {reason}" in capsys.readouterr().out
    assert (
        sd("export", folder, "--shards", shards, "--dim", "8", "--format", "folder", "--out", tmp_path / "narrow") == 0
    )
    assert set(load_distillation(tmp_path / "narrow")["metrics"]["held_out"]) == {"rank_agreement", "rows"}


def test_every_row_falls_into_one_length():
    lengths = np.array([0, 1, 8, 9, 16, 17, 48, 49, 500])
    parts = by_length(np.linspace(0, 1, 9, dtype=np.float32), lengths)
    assert [(part.least, part.most, part.rows) for part in parts] == [
        (1, 8, 3), (9, 16, 2), (17, 24, 1), (33, 48, 1), (49, None, 2)
    ]  # fmt: skip
    assert parts[0].cosine == pytest.approx(0.125)


def test_fifths_by_the_rarest_token_hold_all_rows_in_order():
    counts = np.array([100, 50, 7, 1])
    rarest = rarest_counts(Tokens.of([[0, 1], [0], [2, 0], [], [3, 2], []]), counts)
    assert rarest.tolist() == [50, 100, 7, 0, 1, 0]
    assert rarest_counts(Tokens.of([]), counts).tolist() == []
    assert rarest_counts(Tokens.of([[1, 2]]), counts).tolist() == [7]
    rarest = rarest[[0, 1, 2, 4, 5]]
    parts = by_frequency(np.array([0.5, 0.6, 0.3, 0.2, 0.1], dtype=np.float32), rarest)
    assert [(part.least, part.rows) for part in parts] == [(0, 1), (1, 1), (7, 1), (50, 1), (100, 1)]
    assert [round(part.cosine, 1) for part in parts] == [0.1, 0.2, 0.3, 0.5, 0.6]
    assert sum(part.rows for part in by_frequency(np.zeros(103), np.arange(103))) == 103
    assert [part.rows for part in by_frequency(np.zeros(2), np.arange(2))] == [1, 1]


def test_words_are_counted_in_the_rows_to_train_on(shards):
    reference = Reference.read(shards, 0.1, None)
    stream = ShardStream(shards, held_out=0.1)
    trained: dict[int, int] = {}
    for batch in stream.batches(batch_size=8, seed=0, epoch=0):
        for token in batch.input_ids.flatten().tolist():
            trained[token] = trained.get(token, 0) + 1
    assert len(reference.tokens) + stream.train_rows == 900
    assert reference.rarest.tolist() == [min(trained.get(int(i), 0) for i in ids) for ids in reference.tokens]


def test_held_out_sentences_are_those_of_the_rows(shards, student_folder):
    reference = Reference.read(shards, 0.1, None)
    student = open_model(find_model(str(student_folder)), "student").student
    tokens = student.tokenize(reference.texts)
    np.testing.assert_array_equal(reference.tokens.ids, tokens.ids)
    np.testing.assert_array_equal(reference.tokens.offsets, tokens.offsets)


def test_a_student_opens_as_itself_and_through_sentence_transformers(student_folder, tmp_path):
    bare = shutil.copytree(student_folder, tmp_path / "bare")
    (bare / "distillation.json").unlink()
    own, other = (open_model(find_model(str(folder)), "x") for folder in (student_folder, bare))
    assert own.student is not None
    assert other.student is None
    assert parameters(student_folder) == parameters(bare) == sum(p.numel() for p in own.student.encoder.parameters())
    record = (student_folder / "distillation.json").stat().st_size / 1e6
    assert megabytes(student_folder) == pytest.approx(megabytes(bare) + record)
    sentences = ["The red cat ran.", "One ship."]
    np.testing.assert_allclose(own.encode(sentences), other.encode(sentences), atol=1e-5)


def test_a_plain_transformer_says_how_it_is_pooled(teacher_folder):
    assert open_model(find_model(str(teacher_folder)), "bert").name == "bert (mean pooling)"


def test_a_teacher_with_other_weights_is_refused(student_folder, teacher_folder, classifier_folder):
    distillation = load_distillation(student_folder)
    assert find_teacher(distillation, str(teacher_folder)).folder == teacher_folder
    with pytest.raises(UserError, match="not those of the student's teacher"):
        find_teacher(distillation, str(classifier_folder))


def test_what_is_no_model_is_an_error_of_one_line(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    for name in ("no-such/model", str(tmp_path)):
        with pytest.raises(UserError) as raised:
            open_model(find_model(name), name)
        assert "\n" not in str(raised.value)
        assert "model" in str(raised.value)


def test_a_card_shows_figures_and_leaves_tables_out(student_folder):
    distillation = load_distillation(student_folder)
    parts = [{"least": 1, "most": 8, "rows": 3, "cosine": 0.9}]
    metrics = {"held_out": {"cosine": 0.87654, "by_length": parts, "recall_at_10": 0.54321, "rows": 4321}}
    card = model_card({**distillation, "metrics": metrics})
    assert "| cosine to the teacher | 0.8765 |" in card
    assert "| recall@10 of the teacher's nearest neighbors | 0.5432 |" in card
    assert "| held-out sentences | 4,321 |" in card
    assert "name: 4,321 held-out sentences of the corpus" in card
    assert "least" not in card


def test_names_in_tables_are_short_where_that_tells_models_apart():
    assert short_names(["a/x", "hub/y", "b/x"]) == ["a/x", "y", "b/x"]


def run(sd, capsys, *arguments):
    capsys.readouterr()
    assert sd("eval", *arguments) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.err + captured.out


def test_neighbors_of_some_held_out_sentences_are_recorded(shards, student_folder):
    reference = Reference.read(shards, 0.1, None)
    encoded = encode_tokens(open_model(find_model(str(student_folder)), "x").student.encoder, reference.tokens)
    targets = reference.targets
    examples = nearest_examples(reference.texts, encoded, targets)
    assert len(examples) == 6
    for example in examples:
        query = reference.texts.index(example.query)
        for found, vectors in ((example.student, encoded), (example.teacher, targets)):
            assert {reference.texts.index(one.text) for one in found} == neighbours(vectors, query, 3)
        assert example.shared == sum(one.shared for one in example.student)


def test_python_measures_as_the_command_does(student_folder, shards, tmp_path):
    file = tmp_path / "eval.json"
    record = sentence_distill.evaluate(models=str(student_folder), shards=str(shards), json_file=file)
    assert record.models["student"].held_out.rows > 50
    assert len(record.models["student"].examples) == 6
    written = json.loads(file.read_text())
    assert written["command"] == f"sd eval {student_folder} --shards {shards} --json {file}"
    assert written["environment"]["versions"]["torch"]


def test_one_student_is_measured_in_its_folder(sd, student_folder, few_are_enough, capsys):
    shown = run(sd, capsys, student_folder)
    assert "recall of the teacher's 10 neighbors" in shown
    assert "cosine by length: 9-16 tokens" in shown
    assert "cosine by rarest token: seen" in shown
    figures = json.loads((student_folder / "eval.json").read_text())
    held_out = figures["models"][figures["student"]]["held_out"]
    assert 0 < held_out["recall_at_10"] <= 1
    for parts in (held_out["by_length"], held_out["by_frequency"]):
        assert sum(part["rows"] for part in parts) == held_out["rows"]
        mean = sum(part["rows"] * part["cosine"] for part in parts) / held_out["rows"]
        assert mean == pytest.approx(held_out["cosine"], abs=1e-5)
    assert load_distillation(student_folder)["metrics"]["held_out"] == held_out


def test_another_corpus_is_measured_but_is_not_what_the_card_says(sd, student_folder, shards, tmp_path, capsys):
    student = shutil.copytree(student_folder, tmp_path / "student")
    record = load_distillation(student)
    own = {"cosine": 0.9}
    record["metrics"]["held_out"] = own
    record["corpus"]["fingerprint"]["corpus_content"] = "another"
    (student / "distillation.json").write_text(json.dumps(record))
    (student / "eval.json").unlink(missing_ok=True)
    assert sd("eval", student) == 1
    assert "the student was not trained on " in capsys.readouterr().err
    assert not (student / "eval.json").exists(), "a folder of the recorded name holds something else"
    shown = run(sd, capsys, student, "--shards", shards)
    assert "not the shards that the student was trained on" in shown
    held_out = json.loads((student / "eval.json").read_text())["models"]["student"]["held_out"]
    assert held_out["other_corpus"] == str(shards)
    assert "by_frequency" not in held_out
    assert load_distillation(student)["metrics"]["held_out"] == own


def test_a_card_is_written_anew_unless_it_was_edited(sd, student_folder, tmp_path, capsys):
    student = shutil.copytree(student_folder, tmp_path / "student")
    card = student / "README.md"
    # None that sd wrote: one is made.
    card.unlink()
    run(sd, capsys, student)
    made = card.read_text(encoding="utf-8")
    assert made == model_card(load_distillation(student), title="student")
    assert f"Speed measured on {Environment.here().machine}: " in made
    assert "was edited" not in run(sd, capsys, student)
    card.write_text(made + "\nMy own words.\n", encoding="utf-8")
    assert f"{card} was edited" in run(sd, capsys, student)
    assert card.read_text(encoding="utf-8").endswith("My own words.\n")


def test_a_student_that_can_only_be_read_is_measured_all_the_same(sd, student_folder, tmp_path, capsys, monkeypatch):
    def refused(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    student = shutil.copytree(student_folder, tmp_path / "student", ignore=shutil.ignore_patterns("eval.json"))
    monkeypatch.setattr("sentence_distill.student.model.write_json", refused)
    shown = run(sd, capsys, student, "--json", tmp_path / "mine.json")
    assert f"{student} can't be written (Permission denied): its record and card are left unchanged" in shown
    assert "sentences/s" in shown
    assert json.loads((tmp_path / "mine.json").read_text())["models"]["student"]["held_out"]
    # Where the figures should go into that folder, nothing is measured first.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for kind in ((), ("--speed",)):
        assert sd("eval", student, *kind) == 1
        assert f"{student} is not writable; name another file" in capsys.readouterr().err


def test_models_stand_side_by_side_in_one_file(sd, student_folder, teacher_folder, few_are_enough, tmp_path, capsys):
    other = shutil.copytree(student_folder, tmp_path / "other")
    json_file = tmp_path / "all.json"
    models = (student_folder, other, teacher_folder)
    shown = run(sd, capsys, *models, "--teacher", teacher_folder, "--json", json_file)
    figures = json.loads(json_file.read_text())
    assert list(figures["skipped"]) == ["STS-B"]
    assert "student" not in figures, "the file lies in the folder of none of them"
    names = [student_folder.name, "other", f"{teacher_folder.name} (mean pooling)", "teacher"]
    assert list(figures["models"]) == names
    mine, copy, general, teacher = figures["models"].values()
    assert mine["held_out"] == copy["held_out"]
    # The teacher through sentence-transformers, pooled as it was: it agrees with its own vectors.
    assert set(general["held_out"]) == {"rank_agreement", "recall_at_10", "recall_at_10_among_100", "rows"}
    assert general["held_out"]["recall_at_10"] > 0.99
    assert all(model["sentences_per_second"] > 0 for model in figures["models"].values())
    assert teacher["size"]["parameters"] > 0
    assert "rank agreement" in shown


def test_what_to_do_next_names_a_student(sd, student_folder, teacher_folder, shards, tmp_path, capsys):
    shown = run(sd, capsys, teacher_folder, student_folder, "--json", tmp_path / "both.json")
    assert shown.splitlines()[-1] == (
        f"next: sd encode --student {student_folder} --input FILE --out vectors.parquet, "
        f"sd export {student_folder}, sd report {student_folder}"
    )
    # --student is the same as one MODEL, which need be no student.
    shown = run(sd, capsys, "--student", teacher_folder, "--json", tmp_path / "one.json", "--shards", shards)
    assert shown.splitlines()[-1] == f"figures: {tmp_path / 'one.json'}"


def test_a_model_called_teacher_keeps_its_figures_beside_the_students_teacher(
    sd, student_folder, teacher_folder, tmp_path, capsys
):
    models = [shutil.copytree(student_folder, tmp_path / name) for name in ("teacher", "mine")]
    shown = run(sd, capsys, *models, "--teacher", teacher_folder, "--json", models[1] / "eval.json")
    figures = json.loads((models[1] / "eval.json").read_text())
    assert list(figures["models"]) == ["teacher", "mine", "teacher 2"]
    assert figures["models"]["teacher"]["size"] == figures["models"]["mine"]["size"]
    assert (figures["student"], figures["teacher"]) == ("mine", "teacher 2")
    assert "teacher 2" in shown


def test_a_student_of_another_teacher_is_left_out_of_the_comparison(sd, student_folder, tmp_path, capsys):
    other = shutil.copytree(student_folder, tmp_path / "other")
    record = load_distillation(other)
    record["corpus"]["fingerprint"]["pooling"] = "max"
    (other / "distillation.json").write_text(json.dumps(record))
    run(sd, capsys, student_folder, other, "--json", tmp_path / "all.json")
    figures = json.loads((tmp_path / "all.json").read_text())
    assert "held_out" in figures["models"]["student"]
    assert "held_out" not in figures["models"]["other"]
    assert "another teacher" in figures["skipped"]["held-out fidelity of other"]


def test_shards_need_only_the_layers_that_a_student_approximates(
    sd, shards, teacher_folder, corpus_file, tmp_path, capsys
):
    """As those that `sd embed` makes by default are to a student whose own held more."""
    wide, folder = tmp_path / "wide", tmp_path / "student"
    embed = ("embed", "--corpus", corpus_file, "--teacher", teacher_folder, "--pooling", "mean", "--layers", "1,2")
    assert sd(*embed, "--dtype", "float32", "--precision", "fp32", "--out", wide) == 0
    options = ("--embedding-dim", "16", "--hidden", "16", "--epochs", "1", "--held-out", "0.1")
    assert sd("train-student", "--shards", wide, "--target-layers", "2", "--out", folder, *options) == 0
    figures = []
    for place in (wide, shards):
        run(sd, capsys, folder, "--shards", place)
        measured = json.loads((folder / "eval.json").read_text())["models"]["student"]["held_out"]
        figures.append([measured[name] for name in ("cosine", "rank_agreement", "mse", "rows")])
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    assert sd("export", folder, "--dim", "8,16", "--shards", shards) == 0
    assert sd("train-student", "--shards", wide, "--out", tmp_path / "both", *options) == 0
    capsys.readouterr()
    assert sd("export", tmp_path / "both", "--dim", "8", "--shards", shards) == 1
    assert "layers 2 of the teacher, not 1" in capsys.readouterr().err


def test_words_that_were_not_trained_on_are_not_counted(shards):
    whole, part = (Reference.read(shards, 0.1, None, fraction).rarest for fraction in (1.0, 0.3))
    assert (part <= whole).all()
    assert part.sum() < 0.6 * whole.sum()


def test_modules_in_a_models_own_folder_count_once(student_folder, tmp_path):
    folder = shutil.copytree(student_folder, tmp_path / "student")
    size = megabytes(folder)
    written = (folder / "modules.json").read_text()
    assert '"path": ""' in written
    (folder / "modules.json").write_text(written.replace('"path": ""', '"path": "."'))
    assert megabytes(folder) == pytest.approx(size + 1e-6)


def test_what_is_loaded_and_measured_is_said_while_it_is(sd, student_folder, teacher_folder, shards, tmp_path, capsys):
    (tmp_path / "dev.tsv").write_text(
        "sentence1\tsentence2\tscore\nThe cat.\tThe dog.\t1\nThe cat.\tThe cat.\t5\nA ship.\tThe cat.\t0\n"
    )
    options = ("--teacher", teacher_folder, "--shards", shards, "--sts", tmp_path / "dev.tsv")
    assert sd("eval", student_folder, *options, "--json", tmp_path / "eval.json") == 0
    said = capsys.readouterr().err.splitlines()
    rows = load_distillation(student_folder)["metrics"]["held_out"]["rows"]
    assert [line.split(", ")[0] for line in said[:6]] == [
        f"loading {student_folder} …",
        f"loading teacher {teacher_folder.name} …",
        f"held-out fidelity of student: {rows} sentences",
        "speed: 5,400 of 5,400 sentences",
        "STS-B of student: 3 pairs",
        "STS-B of teacher: 3 pairs",
    ]


def test_a_student_is_compared_with_its_teacher_on_any_text(
    sd, student_folder, teacher_folder, few_are_enough, tmp_path, capsys
):
    folder = shutil.copytree(student_folder, tmp_path / "student", ignore=shutil.ignore_patterns("eval.json"))
    sentences = make_sentences(60)
    (tmp_path / "same.txt").write_text("\n".join(sentences + sentences))
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in sentences[:40]))
    shown = run(sd, capsys, folder, "--teacher", teacher_folder, "--text", tmp_path / "same.txt")
    texts = json.loads((folder / "eval.json").read_text())["models"]["student"]["texts"]
    found = texts[str(tmp_path / "same.txt")]
    assert found["rows"] == 60, "each sentence once"
    assert texts["its own corpus, held out"]["rows"] > 0
    student, teacher = (
        open_model(find_model(str(folder)), ""),
        open_teacher(load_distillation(folder), str(teacher_folder), ""),
    )
    vectors, targets = (torch.from_numpy(model.encode(sentences)) for model in (student, teacher))
    assert found["cosine"] == pytest.approx(
        torch.nn.functional.cosine_similarity(vectors, targets).mean().item(), abs=1e-5
    )
    assert sum(part["rows"] for part in found["by_length"]) == 60
    assert f"{found['cosine']:.3f}" in shown
    assert f"{folder}, cosine to the teacher by text" in shown, "named as it was given, for --init"
    run(sd, capsys, folder, "--teacher", teacher_folder, "--text", tmp_path / "rows.jsonl")
    texts = json.loads((folder / "eval.json").read_text())["models"]["student"]["texts"]
    assert {Path(name).name: each["rows"] for name, each in texts.items() if name.startswith(str(tmp_path))} == {
        "same.txt": 60,
        "rows.jsonl": 40,
    }, "figures of an earlier run stay"


def test_text_far_from_the_corpus_says_how_to_add_it(monkeypatch, capsys):
    texts = {"its own corpus, held out": HeldOut(rows=500, cosine=0.9), "chat log.txt": HeldOut(rows=9, cosine=0.7)}
    print_texts("student", texts)
    shown = capsys.readouterr().out
    assert "sd embed --corpus 'chat log.txt' --corpus wiki.txt --out mixed/" in shown
    assert "sd train-student --shards mixed/ --init student" in shown
    print_texts("student", {**texts, "chat log.txt": HeldOut(rows=9, cosine=0.88)})
    assert "sd embed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"), [("", "holds 0 different sentences"), ("A b c.\nA b c.\n", "holds 1 different sentence")]
)
def test_text_without_enough_sentences_is_an_error(sd, student_folder, tmp_path, capsys, text, said):
    (tmp_path / "few.txt").write_text(text)
    assert sd("eval", student_folder, "--text", tmp_path / "few.txt") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error or "is empty" in error


def test_a_student_that_is_not_the_users_is_measured_on_text_without_a_file(sd, teacher_folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n".join(make_sentences(20)))
    shown = run(sd, capsys, "minilm-small", "--teacher", teacher_folder, "--text", tmp_path / "text.txt")
    assert "figures:" not in shown
    assert "text.txt of minilm-small" in shown, "its teacher is another one"
