"""Training that begins with the weights of another student."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from sentence_distill.data.errors import UserError
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.files import SMALL, locate_student
from sentence_distill.student.model import load_student
from sentence_distill.student.start import WarmStart

# One step that changes next to nothing.
NO_STEP = ("--max-steps", "1", "--learning-rate", "1e-12", "--held-out", "0.1", "--batch-size", "16")


@pytest.fixture
def train(sd, shards, tmp_path):
    """Trains into a folder and returns the exit code and the folder."""

    def run(init, *options, shards=shards, out=tmp_path / "out"):
        return sd("train-student", "--shards", shards, "--out", out, "--init", init, *options), out

    return run


def weights(folder):
    return load_student(folder).encoder.state_dict()


def test_training_begins_with_another_student_s_weights_and_shape(train, student_folder):
    code, out = train(student_folder, *NO_STEP)
    assert code == 0
    before, after = weights(student_folder), weights(out)
    assert after.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)


def test_a_student_that_goes_on_gains_over_its_start_and_says_where_it_began(train, student_folder):
    code, out = train(student_folder, "--epochs", "3", "--held-out", "0.1", "--batch-size", "16")
    assert code == 0
    start, record = (json.loads((folder / "distillation.json").read_text()) for folder in (student_folder, out))
    assert record["metrics"]["held_out"]["cosine"] > start["metrics"]["held_out"]["cosine"] + 0.005
    assert record["start"]["student"] == student_folder.name
    assert "start" not in start
    card = (out / "README.md").read_text()
    assert f"- Start: the weights of the student `{student_folder.name}`." in card
    assert f"of the student that it started from, `{student_folder.name}`, and of the corpus apply" in card


def test_a_student_is_never_worse_than_its_start(train, student_folder, capsys):
    wild = ("--epochs", "1", "--held-out", "0.1", "--batch-size", "16", "--learning-rate", "3")
    code, out = train(student_folder, *wild)
    assert code == 0
    assert "student, before training: held-out cosine 0." in capsys.readouterr().err
    start, record = (json.loads((folder / "distillation.json").read_text()) for folder in (student_folder, out))
    assert record["history"][-1]["cosine"] < start["metrics"]["held_out"]["cosine"]
    assert record["metrics"]["held_out"]["cosine"] == pytest.approx(start["metrics"]["held_out"]["cosine"], abs=1e-4)
    for name, value in weights(student_folder).items():
        torch.testing.assert_close(weights(out)[name], value)


def test_a_shape_may_be_named_only_as_it_is(train, student_folder, capsys):
    assert train(student_folder, *NO_STEP, "--hidden", "16", "--pooling", "mean")[0] == 0
    assert train(student_folder, *NO_STEP, "--hidden", "8", "--overwrite")[0] == 1
    assert "--hidden is 8, but student has 16; leave out --size" in capsys.readouterr().err
    assert train(student_folder, *NO_STEP, "--size", "tiny", "--overwrite")[0] == 1
    assert "--embedding-dim is 64" in capsys.readouterr().err


def test_what_is_no_student_is_named_before_anything_is_written(train, capsys):
    code, out = train("pcaa")
    assert code == 1
    assert "--init pcaa is neither pca nor random nor a student: pcaa holds no student" in capsys.readouterr().err
    assert not out.exists()


def test_the_start_is_not_trained_over(train, student_folder, capsys):
    code, _ = train(student_folder, *NO_STEP, "--overwrite", out=student_folder)
    assert code == 1
    assert "is the student to start from, and must be kept; name another --out" in capsys.readouterr().err
    assert weights(student_folder)


def test_a_student_of_another_vocabulary_gives_each_word_its_vector(train, student_folder):
    """The packaged student has all words of these shards, under other numbers; its vectors are wider."""
    code, out = train(SMALL, *NO_STEP)
    assert code == 0
    small, student = load_student(locate_student(SMALL)), load_student(out)
    theirs, own = small.tokenizer.vocabulary(), student.tokenizer.vocabulary()
    assert own == load_student(student_folder).tokenizer.vocabulary() != theirs
    before, after = small.encoder.embedding.weight, student.encoder.embedding.weight
    torch.testing.assert_close(after[list(own.values())], before[[theirs[word] for word in own]], atol=1e-6, rtol=0)


def test_a_word_that_the_start_lacks_begins_as_its_word_in_lower_case_or_its_mean(student_folder):
    start = WarmStart.load(str(student_folder))
    encoder = StudentEncoder(replace(start.student.encoder.config, vocabulary=5))
    untouched = encoder.embedding.weight.detach().clone()
    notes = start.copy_into(encoder, word_level("Cat", "zebra", "dog", "bird"))
    assert notes == ["student lacks 1 token of these shards: set to its mean word embedding"]
    words, numbers = start.student.encoder.embedding.weight, start.student.tokenizer.vocabulary()
    expected = torch.stack([words[numbers["cat"]], words.mean(0), words[numbers["dog"]], words[numbers["bird"]]])
    torch.testing.assert_close(encoder.embedding.weight[:4], expected)
    assert not torch.equal(encoder.embedding.weight[4], untouched[4])


def test_a_student_that_lacks_more_than_half_of_the_tokens_is_refused(student_folder):
    start = WarmStart.load(str(student_folder))
    encoder = StudentEncoder(replace(start.student.encoder.config, vocabulary=5))
    with pytest.raises(UserError, match="student has 2 of the 5 tokens of the shards, too few to start from"):
        start.copy_into(encoder, word_level("cat", "dog", "Ġcat", "Ġdog", "▁bird"))


def word_level(*words):
    model = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0])
    return TextTokenizer(Tokenizer(model).to_str())


def test_of_several_target_layers_the_last_is_the_student_s_and_the_others_begin_anew(
    train, sd, student_folder, teacher_folder, corpus_file, tmp_path, capsys
):
    both = tmp_path / "both"
    embed = ("embed", "--corpus", corpus_file, "--teacher", teacher_folder, "--out", both, "--pooling", "mean")
    assert sd(*embed, "--layers", "1,2") == 0
    code, out = train(student_folder, *NO_STEP, shards=both)
    assert code == 0
    assert "has no projections.0.bias, projections.0.weight of the shape for these shards: initialized randomly" in (
        capsys.readouterr().err
    )
    name = "projections.0.weight"
    torch.testing.assert_close(weights(out)[name], weights(student_folder)[name], atol=1e-6, rtol=0)


def test_a_run_is_not_resumed_where_its_start_has_become_another(train, student_folder, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise UserError("stopped before the student was written")

    monkeypatch.setattr("sentence_distill.student.train.Trainer.write_student", stop)
    start = shutil.copytree(student_folder, tmp_path / "start")
    options = ("--epochs", "1", "--held-out", "0.1", "--batch-size", "16")
    assert train(start, *options)[0] == 1
    file = next(start.glob("*Dense/model.safetensors"))
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    assert train(start, *options, "--resume")[0] == 1
    assert "other options: --init names a student with other weights; resume it" in capsys.readouterr().err
