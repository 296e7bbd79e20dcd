"""`sd eval --word-order` and `--transfer`: what frozen vectors tell."""

import json
import random
import shutil

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from sentence_distill.data.errors import UserError
from sentence_distill.data.senteval import Split, TransferTask, transfer_tasks
from sentence_distill.data.word_order import altered_pairs, ask, negate, swap
from sentence_distill.student.probes import STRENGTHS, fits, transfer_scores, word_order
from tests.conftest import make_sentences


@pytest.mark.parametrize(
    ("rule", "sentence", "expected"),
    [
        (negate, "The river is long.", "The river is not long."),
        (negate, "It was not built by them.", "It was built by them."),
        (negate, "They ran.", None),
        (negate, "Here it is", None),
        (ask, "The river is long.", "Is the river long?"),
        (ask, "I can swim.", "Can I swim?"),
        (ask, "Paris has a tower.", "Has Paris a tower?"),
        (ask, "In May, it was sold.", None),
        (ask, "The son of the brother of the king was ill.", None),
        (ask, "The river is long", None),
        (swap, "Then France beat New Zealand.", "Then New Zealand beat France."),
        (swap, "The French left Spain in May.", "The Spain left French in May."),
        (swap, "Rome fell to Alaric.", None),
        (swap, "King Alaric took Rome, then left.", "Rome took King Alaric, then left."),
        (swap, "She saw France, Spain and Rome.", None),
        (swap, "In Rome he loved Rome.", None),
    ],
)
def test_rules_make_sentences_of_nearly_the_same_words(rule, sentence, expected):
    assert rule(sentence) == expected


def test_pairs_are_the_first_that_each_rule_fits():
    found = altered_pairs(["It is far.", "Nothing.", "He was not old.", "We can go."], 2)
    assert found["negated"] == [("It is far.", "It is not far."), ("He was not old.", "He was old.")]
    assert found["as a question"] == [("It is far.", "Is it far?"), ("He was not old.", "Was he not old?")]
    assert found["names swapped"] == []


def test_word_order_worked_by_hand():
    left = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    right = np.array([[1, 0], [1, 0], [1, 1]], dtype=np.float32)
    alone = word_order(left, right)
    assert (alone.pairs, alone.agreement) == (3, None)
    assert alone.cosine == pytest.approx((1 + 0 + 0.5**0.5) / 3)
    assert word_order(left, right, np.array([0.9, 0.1, 0.5])).agreement == pytest.approx(1)
    assert word_order(left, right, np.array([0.1, 0.9, 0.5])).agreement == pytest.approx(-1)
    # What has all pairs as equal, as a bag of words has them, agrees with nothing.
    assert word_order(left, left, np.array([0.1, 0.9, 0.5])).agreement == 0


def points(count, seed=0, noise=1.0):
    """Two classes of points that overlap, as an `encode` of numbers written as text."""
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], count // 2)
    vectors = (labels[:, None] * 1.5 + noise * rng.normal(size=(count, 3))).astype(np.float32)
    texts = [" ".join(map(str, vector)) for vector in vectors]
    return texts, [str(label) for label in labels]


def encode(texts):
    return np.array([[float(number) for number in text.split()] for text in texts], dtype=np.float32)


def test_a_task_with_splits_is_scored_as_by_hand():
    splits = [Split((texts,), labels) for texts, labels in (points(80, seed) for seed in range(3))]
    vectors = [encode(split.texts[0]) for split in splits]
    fitted = [LogisticRegression(C=c, max_iter=1000).fit(vectors[0], splits[0].labels) for c in STRENGTHS]
    best = max(fitted, key=lambda each: each.score(vectors[1], splits[1].labels))
    expected = np.mean(best.predict(vectors[2]) == splits[2].labels)
    task = TransferTask("SST", *splits)
    assert transfer_scores(task, encode, lambda count: None) == {"accuracy": pytest.approx(expected)}
    assert 0.6 < expected < 1


def test_pairs_are_scored_by_difference_and_product():
    left, labels = points(120, noise=0.01)
    # A pair is of class 1 if its sides are the same, which neither side tells alone.
    right = [text if label == "1" else "9 9 9" for text, label in zip(left, labels, strict=True)]
    wrong = [*labels[60:-1], "0"]
    task = TransferTask("MRPC", Split((left[:60], right[:60]), labels[:60]), test=Split((left[60:], right[60:]), wrong))
    found = transfer_scores(task, encode, lambda count: None)
    expected = f1_score([int(label) for label in wrong], [int(label) for label in labels[60:]])
    assert found == {"f1": pytest.approx(expected), "accuracy": pytest.approx(59 / 60)}


@pytest.mark.parametrize(("noise", "low", "high"), [(0.01, 1.0, 1.0), (100.0, 0.3, 0.7)])
def test_a_task_without_splits_is_cross_validated(noise, low, high):
    texts, labels = points(200, noise=noise)
    calls = []
    task = TransferTask("MR", Split((texts,), labels))
    assert low <= transfer_scores(task, encode, calls.append)["accuracy"] <= high
    assert sum(calls) == fits(task) == 10


@pytest.fixture
def senteval(tmp_path):
    """The seven tasks in SentEval's layout, of few examples each."""
    folder, sentences = tmp_path / "downstream", make_sentences(400, seed=5)
    rng = random.Random(0)

    def write(name, lines):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    for task, names in (
        ("MR", ("rt-polarity.pos", "rt-polarity.neg")),
        ("CR", ("custrev.pos", "custrev.neg")),
        ("SUBJ", ("subj.subjective", "subj.objective")),
        ("MPQA", ("mpqa.pos", "mpqa.neg")),
    ):
        for name in names:
            write(f"{task}/{name}", rng.sample(sentences, 30))
    for split in ("train", "dev", "test"):
        write(f"SST/binary/sentiment-{split}", [f"{text}\t{n % 2}" for n, text in enumerate(rng.sample(sentences, 40))])
    for name in ("train_5500.label", "TREC_10.label"):
        classes = ("LOC:city", "NUM:count", "HUM:ind")
        write(f"TREC/{name}", [f"{classes[n % 3]} {text}" for n, text in enumerate(rng.sample(sentences, 45))])
    for split in ("train", "test"):
        rows = [f'{n % 2}\t1\t2\t{sentences[n]}\t"{sentences[n + 1]}' for n in range(40)]
        write(f"MRPC/msr_paraphrase_{split}.txt", ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows])
    return folder


def test_senteval_s_files_are_read_with_their_splits(senteval):
    (senteval / "MR" / "rt-polarity.pos").write_bytes("café .\n".encode("latin-1") * 10)
    tasks = transfer_tasks(senteval)
    assert list(tasks) == ["MR", "CR", "SUBJ", "MPQA", "SST", "TREC", "MRPC"]
    assert tasks["MR"].train.texts[0][0] == "café ."
    assert tasks["MR"].train.labels == ["1"] * 10 + ["0"] * 30
    assert tasks["SST"].dev.labels[:2] == ["0", "1"]
    assert set(tasks["TREC"].test.labels) == {"LOC", "NUM", "HUM"}
    assert tasks["TREC"].train.texts[0][0].split()[0].istitle()
    # A quotation mark that is never closed is part of the text.
    assert len(tasks["MRPC"].train.labels) == 40
    assert tasks["MRPC"].train.texts[1][0].startswith('"')
    (senteval / "CR" / "custrev.neg").unlink()
    with pytest.raises(UserError, match=r"custrev\.neg can't be read"):
        transfer_tasks(senteval)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("SST/binary/sentiment-dev", "good\t5\n", "0 or 1, not '5'"),
        ("TREC/TREC_10.label", "What is it?\n", "LOC:city"),
        ("MRPC/msr_paraphrase_test.txt", "a\tb\n1\t2\n", "Quality"),
        ("MR/rt-polarity.neg", "\n", "is empty"),
        ("CR/custrev.pos", "Only one.\n", "only 1 training example"),
        ("TREC/train_5500.label", "LOC:city Where is it?\nNUM:count How many?\n", "only 1 training example"),
    ],
)
def test_a_file_of_another_form_is_named(senteval, name, content, message):
    (senteval / name).write_text(content)
    with pytest.raises(UserError, match=message) as found:
        transfer_tasks(senteval)
    assert name.partition("/")[0] in str(found.value)


def test_sd_eval_measures_both_next_to_the_teacher(sd, student_folder, teacher_folder, senteval, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(make_sentences(300, seed=9)))
    command = ("eval", student_folder, "--teacher", teacher_folder, "--json", tmp_path / "eval.json")
    assert sd(*command, "--word-order", text, "--transfer", senteval) == 0
    shown = capsys.readouterr().out
    assert "MRPC, f1, frozen" in shown
    assert "cosine of a sentence to itself, negated" in shown
    models = json.loads((tmp_path / "eval.json").read_text())["models"]
    student, teacher = models[student_folder.name], models["teacher"]
    assert (
        student["transfer"].keys() == teacher["transfer"].keys() == {"MR", "CR", "SUBJ", "MPQA", "SST", "TREC", "MRPC"}
    )
    assert -1 <= student["word_order"]["negated"]["agreement"] <= 1
    assert "agreement" not in teacher["word_order"]["negated"]
    assert student["word_order"]["negated"]["pairs"] == teacher["word_order"]["negated"]["pairs"] > 2


def test_the_card_and_the_report_show_both_and_other_text(sd, student_folder, teacher_folder, senteval, tmp_path):
    folder, text = tmp_path / "student", tmp_path / "place" / "text.txt"
    shutil.copytree(student_folder, folder)
    text.parent.mkdir()
    text.write_text("\n".join(make_sentences(300, seed=9)))
    given = ("--text", text, "--word-order", text, "--transfer", senteval, "--teacher", teacher_folder)
    assert sd("eval", folder, *given) == 0
    card = (folder / "README.md").read_text()
    assert "| text |" in card
    assert str(tmp_path) not in card
    assert "| negated |" in card
    assert "| MRPC, f1 |" in card
    pytest.importorskip("matplotlib")
    assert sd("report", folder, "--out", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    assert "MRPC, accuracy" in page
    # The student's column alone: the teacher has no agreement with itself.
    assert page.count("rank correlation with the teacher&#39;s") == 1


def test_text_and_folders_that_hold_nothing_to_measure_are_refused(sd, student_folder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("One two three four.\nFive six seven eight.\n")
    (tmp_path / "none").mkdir()
    for option, place, message in (
        ("--word-order", text, "holds too few sentences that a rule fits"),
        ("--transfer", tmp_path / "none", "holds none of MR, CR"),
        ("--transfer", text, "is not a folder"),
    ):
        assert sd("eval", student_folder, option, place) == 1
        assert message in capsys.readouterr().err
