import copy

import pytest
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.student.config import StudentConfig, TrainConfig
from sentence_distill.student.dataset import Batch
from sentence_distill.student.distributed import ProcessGroup
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.step import Optimizer, Stepper

CONFIG = {"cosine": 1.0, "mse": 0.5, "relational": 0.3, "batch_size": 10}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, 30, (10, 6), generator=generator)
    return Batch(input_ids, torch.randn(10, 9, generator=generator).half())


def make(**options):
    torch.manual_seed(0)
    encoder = StudentEncoder(
        StudentConfig(vocabulary=30, target_dims=(4, 5), normalize=True, embedding_dim=7, hidden=6)
    )
    return Stepper(encoder, TrainConfig(**{**CONFIG, **options}), torch.float32, ProcessGroup("cpu"))


def gradients(stepper, batch, step=0):
    """The loss and all gradients, of the word embeddings as a whole table."""
    loss, words = stepper.gradient(batch, step)
    table = torch.zeros_like(stepper.encoder.embedding.weight)
    table[words.words] = words.rows.grad
    dense = [weight.grad for weight in Optimizer(stepper.encoder, TrainConfig()).dense]
    return [loss, table, *dense]


def let_memory_hold(stepper, rows, monkeypatch, error, backward=False):
    """Let the encoder run out of memory over more than so many rows, going forth or back."""
    pool = stepper.encoder.pool_words

    def limited(embedded):
        full = len(embedded) > rows
        if full and not backward:
            raise error("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        pooled = pool(embedded)
        if full and torch.is_grad_enabled():

            def fail(gradient):
                raise error("DefaultCPUAllocator: can't allocate memory")

            pooled.register_hook(fail)
        return pooled

    monkeypatch.setattr(stepper.encoder, "pool_words", limited)


def test_the_gradient_is_that_of_the_plain_loop(batch):
    from sentence_distill.student.step import distillation_loss

    stepper = make()
    found = gradients(stepper, batch)
    plain = make().encoder
    loss = distillation_loss(plain.targets(plain.pool(batch.input_ids)), batch.targets.float(), TrainConfig(**CONFIG))
    (loss.sum() / 10).backward()
    expected = [loss.detach(), plain.embedding.weight.grad]
    expected += [weight.grad for weight in Optimizer(plain, TrainConfig()).dense]
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize(("rows", "pieces"), [(5, 2), (3, 4), (1, 16)])
def test_a_batch_that_does_not_fit_is_computed_in_pieces_to_the_same_gradient(
    batch, monkeypatch, error, backward, rows, pieces
):
    expected = gradients(make(token_dropout=0.3), batch)
    stepper = make(token_dropout=0.3)
    let_memory_hold(stepper, rows, monkeypatch, error, backward)
    found = gradients(stepper, batch)
    assert stepper.pieces == pieces
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-5)


def test_a_sentence_that_does_not_fit_alone_is_an_error(batch, monkeypatch):
    stepper = make()
    let_memory_hold(stepper, 0, monkeypatch, torch.OutOfMemoryError)
    with pytest.raises(UserError, match="does not fit into memory"):
        stepper.gradient(batch, 0)


def test_another_error_than_memory_is_not_swallowed(batch, monkeypatch):
    stepper = make()

    def broken(embedded):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(stepper.encoder, "pool_words", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        stepper.gradient(batch, 0)


def test_dropout_is_a_function_of_seed_and_step(batch):
    first = gradients(make(token_dropout=0.5), batch, step=3)[0]
    assert torch.equal(first, gradients(make(token_dropout=0.5), batch, step=3)[0])
    assert not torch.equal(first, gradients(make(token_dropout=0.5), batch, step=4)[0])
    assert not torch.equal(first, gradients(make(token_dropout=0.5, seed=1), batch, step=3)[0])


def test_token_dropout_hides_tokens_and_embedding_dropout_whole_words(batch):
    token, word = (make(**{f"{kind}_dropout": 0.5})._words(batch.input_ids, 0).weights[:, :, 0]
                   for kind in ("token", "embedding"))  # fmt: skip
    assert set(token.unique().tolist()) == {0.0, 1.0}
    assert set(word.unique().tolist()) == {0.0, 2.0}
    per_word = {id_: word[batch.input_ids == id_].unique().tolist() for id_ in batch.input_ids.unique().tolist()}
    assert all(len(values) == 1 for values in per_word.values())
    mixed = [token[batch.input_ids == id_].unique().tolist() for id_ in batch.input_ids.unique().tolist()]
    assert any(len(values) == 2 for values in mixed)


def test_only_the_words_of_the_batch_move(batch):
    stepper = make()
    optimizer = Optimizer(stepper.encoder, TrainConfig())
    before = stepper.encoder.embedding.weight.detach().clone()
    for step in range(2):
        _, words = stepper.gradient(batch, step)
        optimizer.step(1e-2, words.words, words.rows)
    moved = (stepper.encoder.embedding.weight != before).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == sorted(batch.input_ids.unique().tolist())
    assert len(words.words) < 30


def test_word_embeddings_move_as_under_adam_over_the_whole_table_at_their_own_rate(batch):
    stepper = make()
    optimizer = Optimizer(stepper.encoder, TrainConfig(clip=1e9, embedding_rate=3.0))
    table = stepper.encoder.embedding.weight.detach().clone().requires_grad_()
    adam = torch.optim.Adam([table], lr=3e-2, betas=(0.0, 0.999))
    # A few words a step, so that most are away between two of theirs.
    parts = [Batch(batch.input_ids[row : row + 1], batch.targets[row : row + 1]) for row in (0, 1, 2, 0, 3, 1)]
    for step, part in enumerate(parts):
        _, words = stepper.gradient(part, step)
        table.grad = torch.zeros_like(table)
        table.grad[words.words] = words.rows.grad
        adam.step()
        optimizer.step(1e-2, words.words, words.rows)
    torch.testing.assert_close(stepper.encoder.embedding.weight.detach(), table.detach(), atol=1e-5, rtol=0)


def test_the_optimizers_go_on_from_their_state(batch):
    tables = []
    for stop in (False, True):
        stepper = make()
        optimizer = Optimizer(stepper.encoder, TrainConfig())
        for step in range(4):
            if stop and step == 2:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = Optimizer(stepper.encoder, TrainConfig())
                optimizer.load_state_dict(state)
            _, words = stepper.gradient(batch, step)
            optimizer.step(1e-2, words.words, words.rows)
        tables.append(stepper.encoder.embedding.weight.detach().clone())
    assert torch.equal(*tables)
