import itertools
import json
import math
import shutil
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.student.config import TrainConfig
from sentence_distill.student.distributed import LostProcessError
from sentence_distill.student.metrics import fidelity
from sentence_distill.student.run_folder import draw_curves, read_metrics
from sentence_distill.student.start import SCALE, initial_embeddings
from sentence_distill.student.step import distillation_loss, learning_rate, relational_loss
from sentence_distill.student.train import Trainer


def make(shards, out, **options):
    small = {"embedding_dim": 8, "hidden": 8, "device": "cpu", "precision": "fp32", "epochs": 3, "batch_size": 16}
    return Trainer(TrainConfig(shards=shards, out=out, **{**small, "held_out": 0.1, **options}))


def trained(trainer):
    """All weights of the best student, in one vector."""
    trainer.run()
    return torch.cat([parameter.flatten() for parameter in trainer.best_student()[0].encoder.parameters()])


def run_until(trainer, steps):
    """Train up to `steps` steps, as Ctrl-C would end it."""
    step = trainer._step

    def counted(batch):
        result = step(batch)
        trainer.stop_requested = trainer.state.step >= steps
        return result

    trainer._step = counted
    with pytest.raises(UserError, match=rf"stopped at step {steps} .*run the same command again to resume"):
        trainer.run()


def save(trainer):
    trainer.save()
    trainer.checkpoints.wait()


def test_training_comes_close_to_the_teacher(student_folder):
    metrics = json.loads((student_folder / "distillation.json").read_text())
    history = [epoch["cosine"] for epoch in metrics["history"]]
    assert history[-1] > history[0]
    assert metrics["metrics"]["held_out"]["cosine"] > metrics["metrics"]["held_out"]["mean_vector_cosine"]


def test_the_same_seed_gives_the_same_weights_to_the_bit(shards, tmp_path):
    first, second = (trained(make(shards, tmp_path / name, epochs=1)) for name in "ab")
    assert torch.equal(first, second)
    other = trained(make(shards, tmp_path / "c", epochs=1, seed=1))
    assert not torch.equal(first, other)


def test_a_run_stopped_twice_ends_with_the_weights_of_one_that_was_not(shards, tmp_path):
    expected = make(shards, tmp_path / "whole")
    whole = trained(expected)
    for stop in (5, expected.steps // 2 + 3):
        trainer = make(shards, tmp_path / "stopped")
        if stop > 5:
            trainer.resume()
        run_until(trainer, stop)
    trainer = make(shards, tmp_path / "stopped")
    trainer.resume()
    assert trainer.state.step_in_epoch > 0
    assert torch.equal(trained(trainer), whole)
    assert trainer.history == expected.history


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(shards, tmp_path):
    save(make(shards, tmp_path))
    with pytest.raises(UserError, match="--batch-size was 16, now 32;"):
        make(shards, tmp_path, batch_size=32).resume()


def test_a_checkpoint_of_other_shards_is_refused(sd, shards, teacher_folder, corpus_file, tmp_path):
    embed = ("embed", "--corpus", corpus_file, "--teacher", teacher_folder, "--out", tmp_path / "shards")
    assert sd(*embed, "--pooling", "cls", "--shard-rows", "200", "--dtype", "float32", "--precision", "fp32") == 0
    save(make(shards, tmp_path / "run"))
    with pytest.raises(UserError, match=r"--shards: --pooling \(.* there, cls here\);"):
        make(tmp_path / "shards", tmp_path / "run").resume()


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", bytes(range(256))])
def test_a_checkpoint_that_is_not_there_or_damaged_is_an_error(shards, tmp_path, content):
    if content is not None:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "step-0000000001.pt").write_bytes(content)
    with pytest.raises(UserError, match="checkpoint"):
        make(shards, tmp_path).resume()


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(shards, tmp_path):
    trainer = make(shards, tmp_path)
    with torch.no_grad():
        trainer.encoder.projections[0].bias.fill_(math.nan)
    with pytest.raises(UserError, match=r"no longer finite at step .* lower --learning-rate"):
        trainer.run()


def test_the_learning_rate_rises_falls_and_ends_at_nothing():
    config = TrainConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(done / 100, config) for done in range(101)]
    assert rates[:11] == pytest.approx([done / 10 for done in range(11)])
    assert max(rates) == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0)


def test_losses_of_vectors_worked_by_hand():
    vector, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    cosine, mse = 1 - 1 / math.sqrt(2), 0.5
    for weights in ({"cosine": 1.0}, {"cosine": 0.0, "mse": 1.0}, {"cosine": 2.0, "mse": 3.0}):
        expected = weights["cosine"] * cosine + weights.get("mse", 0) * mse
        assert distillation_loss([vector], target, TrainConfig(**weights)).item() == pytest.approx(expected)


def test_the_relational_loss_of_three_sentences_worked_by_hand():
    teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    student = torch.tensor([[5.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # Of sentence 0 the teacher's cosines to the others are 0 and -1, the student's 1 and 0.
    p, q = torch.tensor([0.0, -1.0]).div(0.5).softmax(0), torch.tensor([1.0, 0.0]).div(0.5).softmax(0)
    found = relational_loss(student, teacher, 0.5)
    assert found[0].item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)
    # Sentence 1: the teacher's are 0 and 0, the student's 1 and 0.
    q = torch.tensor([1.0, 0.0]).div(0.5).softmax(0)
    assert found[1].item() == pytest.approx((0.5 * (0.5 / q).log()).sum().item(), abs=1e-6)


def test_the_relational_loss_asks_for_the_teacher_s_neighbours_and_not_for_its_vectors():
    torch.manual_seed(0)
    teacher = torch.randn(20, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    assert relational_loss(teacher @ rotation * 3, teacher, 0.05).max() < 1e-4
    assert relational_loss(torch.randn(20, 8), teacher, 0.05).mean() > 0.5
    assert relational_loss(teacher[:1].requires_grad_(), teacher[:1], 0.05).tolist() == [0.0]


def test_several_targets_count_alike():
    vectors = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])]
    target = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0]])
    assert distillation_loss(vectors, target, TrainConfig()).item() == pytest.approx(0.5)


def test_a_loss_without_any_part_is_an_error():
    with pytest.raises(UserError, match="--cosine, --mse or --relational"):
        TrainConfig(cosine=0.0)


def test_pca_keeps_the_distances_that_its_components_can_hold():
    torch.manual_seed(0)
    table = torch.randn(200, 4) @ torch.randn(4, 12) + 5
    reduced = initial_embeddings("pca", table, 4, torch.Generator())
    assert reduced.std().item() == pytest.approx(SCALE, rel=0.01)
    ratio = torch.cdist(reduced, reduced)[0, 1:] / torch.cdist(table, table)[0, 1:]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), atol=1e-4, rtol=1e-4)


def test_pca_of_more_components_than_there_are_is_an_error():
    with pytest.raises(UserError, match="--init random"):
        initial_embeddings("pca", torch.randn(9, 4), 5, torch.Generator())


def test_fidelity_of_the_teacher_to_itself_is_perfect():
    targets = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
    scores = fidelity(targets, targets)
    assert scores["cosine"] == pytest.approx(1)
    assert scores["mse"] == 0
    assert scores["rank_agreement"] == pytest.approx(1)
    assert scores["mean_vector_cosine"] < 0.5


def test_several_layers_are_distilled_each_by_its_own_projection(sd, teacher_folder, corpus_file, tmp_path):
    embed = ("embed", "--corpus", corpus_file, "--teacher", teacher_folder, "--out", tmp_path / "shards")
    assert sd(*embed, "--layers", "1,2", "--pooling", "mean") == 0
    train = ("train-student", "--shards", tmp_path / "shards", "--out", tmp_path / "student", "--held-out", "0.1")
    assert sd(*train, "--embedding-dim", "8", "--hidden", "8", "--epochs", "1", "--batch-size", "16") == 0
    config = json.loads((tmp_path / "student" / "distillation.json").read_text())["student"]
    assert config["target_dims"] == [32, 32]
    from sentence_distill.student.model import load_student

    assert load_student(tmp_path / "student").encode(["The red cat ran."]).shape == (1, 32)


def test_a_run_ends_at_its_last_step_with_a_learning_rate_near_nothing(shards, tmp_path):
    trainer = make(shards, tmp_path, max_steps=60, validate_every=25)
    trainer.run()
    assert [entry["step"] for entry in trainer.history] == [25, 50, 60]
    assert trainer.optimizer.rate < 0.01 * trainer.config.learning_rate
    assert trainer.state.sentences < 60 * 16 + 1


def test_word_embeddings_of_an_unknown_kind_are_not_replaced_by_others():
    with pytest.raises(UserError, match="init 'wiki-small' is not one of pca, random, and no student was given"):
        initial_embeddings("wiki-small", torch.randn(9, 4), 2, torch.Generator())


def test_a_run_limited_in_time_ends_with_it_and_lowers_the_learning_rate_in_it(shards, tmp_path, monkeypatch):
    # A clock of its own: on a busy machine one real step may take a tenth of any limit that a test can wait for.
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 0.01 * next(ticks))
    monkeypatch.setattr("sentence_distill.student.train.time", clock)
    trainer = make(shards, tmp_path, epochs=10_000, max_time=3.0)
    trainer.run()
    assert 100 <= trainer.state.step < trainer.steps
    assert 3.0 <= trainer.state.seconds < 3.1
    assert trainer.optimizer.rate < 0.05 * trainer.config.learning_rate
    assert trainer.history[-1]["step"] == trainer.state.step


def test_time_goes_on_where_a_stopped_run_left_it(shards, tmp_path):
    trainer = make(shards, tmp_path, epochs=10_000, max_time=600.0)
    run_until(trainer, 10)
    resumed = make(shards, tmp_path, epochs=10_000, max_time=600.0)
    resumed.resume()
    run_until(resumed, 20)
    assert resumed.state.seconds > trainer.state.seconds > 0


def test_a_run_that_no_longer_improves_ends_and_keeps_its_best(shards, tmp_path, monkeypatch):
    cosines = iter([0.1, 0.3, 0.2, 0.25, 0.4])
    monkeypatch.setattr(
        "sentence_distill.student.train.fidelity",
        lambda vectors, targets: {**fidelity(vectors, targets), "cosine": next(cosines)},
    )
    trainer = make(shards, tmp_path, epochs=50, validate_every=4, patience=2)
    trainer.run()
    assert trainer.state.step == 16
    assert trainer.state.best == pytest.approx(0.3)
    best = trainer.checkpoints.best()["model"]["projections.0.weight"]
    assert not torch.equal(best, trainer.encoder.state_dict()["projections.0.weight"])


def test_the_log_has_each_step_once_however_often_the_run_was_stopped(shards, tmp_path):
    trainer = make(shards, tmp_path, epochs=4)
    run_until(trainer, 130)
    trainer.checkpoints.wait()
    # Killed behind the checkpoint: lines of steps that will be done again, and one cut short.
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text() + '{"kind": "train", "step": 150, "loss": 1}\n{"kind": "tra')
    resumed = make(shards, tmp_path, epochs=4)
    resumed.resume()
    resumed.run()
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [50, 100, 150, 200]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [
        entry["step"] for entry in resumed.history
    ]
    assert {"loss", "learning_rate", "gradient_norm", "sentences_per_second", "wait_share"} <= lines[0].keys()


def test_curves_and_tensorboard_s_events_are_made_of_a_run(shards, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make(shards, tmp_path, epochs=1, tensorboard=True).run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [50]
    svg = draw_curves(tmp_path).read_text()
    # A mark for each validation, and a line for the one logged step.
    assert svg.count('xlink:href="#m') > 4
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert draw_curves(tmp_path).read_text() == svg


def test_a_shard_that_vanishes_during_training_is_named_and_the_run_goes_on_when_it_is_back(
    shards, tmp_path, monkeypatch
):
    folder = shutil.copytree(shards, tmp_path / "shards")
    monkeypatch.setattr("sentence_distill.student.dataset.WINDOW_ROWS", 200)
    expected = trained(make(folder, tmp_path / "whole", epochs=2, validate_every=5))
    trainer = make(folder, tmp_path / "student", epochs=2, validate_every=5)
    run_until(trainer, 10)
    lost = folder / "shard-00002.arrow"
    lost.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"shard-00002\.arrow is missing"):
        make(folder, tmp_path / "student", epochs=2, validate_every=5)
    (tmp_path / "away").rename(lost)
    resumed = make(folder, tmp_path / "student", epochs=2, validate_every=5)
    resumed.resume()
    lost.rename(tmp_path / "away")
    with pytest.raises(
        UserError, match=r"shard-00002\.arrow can no longer be read.*run the same command again to resume"
    ):
        resumed.run()
    (tmp_path / "away").rename(lost)
    resumed = make(folder, tmp_path / "student", epochs=2, validate_every=5)
    resumed.resume()
    assert torch.equal(trained(resumed), expected)


@pytest.mark.parametrize("stop", [1, 12, 54, 55, 56, 110])
def test_a_run_stopped_at_any_step_has_the_same_history_and_weights(shards, tmp_path, monkeypatch, stop):
    monkeypatch.setattr("sentence_distill.student.dataset.WINDOW_ROWS", 300)
    options = {"epochs": 2, "validate_every": 12, "token_dropout": 0.2, "embedding_dropout": 0.1, "relational": 0.1}
    expected = make(shards, tmp_path / "whole", **options)
    assert len({expected.stream.steps(16, 0, epoch) for epoch in range(2)} | {expected.steps}) > 1
    whole = trained(expected)
    stopped = make(shards, tmp_path / "stopped", **options)
    run_until(stopped, min(stop, expected.steps))
    resumed = make(shards, tmp_path / "stopped", **options)
    resumed.resume()
    assert torch.equal(trained(resumed), whole)
    assert resumed.history == expected.history
    steps = [entry["step"] for entry in resumed.history]
    assert steps == sorted({*range(12, expected.steps + 1, 12), expected.steps})
    logged = [line["step"] for line in read_metrics(tmp_path / "stopped") if line["kind"] == "validation"]
    assert logged == steps


def test_a_run_that_lost_a_process_at_its_last_validation_makes_it_up(shards, tmp_path):
    whole = make(shards, tmp_path / "whole", max_steps=20)
    expected = trained(whole)
    trainer = make(shards, tmp_path / "student", max_steps=20)

    def lost(encoder, group):
        raise LostProcessError("another process of the run is gone")

    trainer.held_out.scores = lost
    with pytest.raises(UserError, match=r"stopped at step 20.*run the same command again to resume"):
        trainer.run()
    resumed = make(shards, tmp_path / "student", max_steps=20)
    resumed.resume()
    assert torch.equal(trained(resumed), expected)
    assert resumed.history == whole.history


def test_weights_that_are_not_finite_never_become_a_checkpoint(shards, tmp_path):
    trainer = make(shards, tmp_path)
    trainer.state.step = 1
    with torch.no_grad():
        trainer.encoder.projections[0].bias.fill_(math.inf)
    with pytest.raises(UserError, match="no longer finite"):
        trainer.save()
    assert not any(tmp_path.glob("checkpoints/*"))


def test_a_student_is_trained_from_python(shards, tmp_path):
    from sentence_distill import Student, train_student

    options = {"embedding_dim": 8, "hidden": 8, "max_steps": 3, "held_out": 0.1}
    record = train_student(shards=shards, out=tmp_path / "student", **options)
    assert record.metrics["held_out"]["cosine"] == record.history[-1]["cosine"]
    assert record.training.max_steps == 3
    flags = "--embedding-dim 8 --hidden 8 --max-steps 3 --held-out 0.1"
    assert record.command == f"sd train-student --shards {shards} --out {tmp_path / 'student'} {flags}"
    assert Student.load(tmp_path / "student").dim == 32
    with pytest.raises(UserError, match="train_student has no option 'epoch'; it takes batch_size, "):
        train_student(epoch=3)


def test_scores_are_those_of_the_weights_that_are_kept(shards, tmp_path):
    trainer = make(shards, tmp_path, epochs=2)
    trainer.run()
    student, entry = trainer.best_student()
    found = trainer.held_out.scores(student.encoder, trainer.group)
    assert found == {name: entry[name] for name in found}
