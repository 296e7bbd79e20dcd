import json
import math
from itertools import pairwise

import pytest
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Silent
from sentence_distill.student.config import StudentConfig, TrainConfig
from sentence_distill.student.fidelity import fidelity
from sentence_distill.student.init import SCALE, initial_embeddings
from sentence_distill.student.losses import distillation_loss, relational_loss
from sentence_distill.student.optimizer import learning_rate
from sentence_distill.student.ranks import Ranks
from sentence_distill.student.train import Trainer


def make(shards, out, **options):
    student = StudentConfig(vocabulary=45, target_dims=(32,), normalize=True, embedding_dim=8, hidden=8)
    config = TrainConfig(**{"epochs": 3, "batch_size": 16, "held_out": 0.1, **options})
    return Trainer(
        shards=shards,
        out=out,
        student=student,
        config=config,
        ranks=Ranks("cpu"),
        precision=torch.float32,
        progress=Silent(),
    )


def trained(trainer):
    """All weights of the best student, in one vector."""
    trainer.run()
    return torch.cat([parameter.flatten() for parameter in trainer.best_student().encoder.parameters()])


def run_until(trainer, steps):
    """Train up to `steps` steps, as Ctrl-C would end it."""
    step = trainer._step

    def counted(batch):
        result = step(batch)
        trainer.stop_requested = trainer.state.step >= steps
        return result

    trainer._step = counted
    with pytest.raises(UserError, match=rf"stopped at step {steps}.*--resume"):
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
    with pytest.raises(UserError, match=r"batch_size \(16 -> 32\)"):
        make(shards, tmp_path, batch_size=32).resume()


def test_a_checkpoint_of_other_shards_is_refused(sd, shards, teacher_folder, corpus_file, tmp_path):
    embed = ("embed", "--corpus", corpus_file, "--teacher", teacher_folder, "--out", tmp_path / "shards")
    assert sd(*embed, "--pooling", "cls", "--shard-rows", "200", "--dtype", "float32", "--precision", "fp32") == 0
    save(make(shards, tmp_path))
    with pytest.raises(UserError, match=r"shards' pooling \(mean -> cls\)"):
        make(tmp_path / "shards", tmp_path).resume()


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
    with pytest.raises(UserError, match=r"nan at step .* lower --learning-rate"):
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
    from sentence_distill.student.folder import load_student

    assert load_student(tmp_path / "student").encode(["The red cat ran."]).shape == (1, 32)
