"""Probing what a machine can compute; both outcomes are tested on every machine."""

import pytest
import torch
from torch import nn

from sentence_distill import Student
from sentence_distill.data.errors import UserError
from sentence_distill.pipeline import hardware
from sentence_distill.pipeline.hardware import (
    FINETUNING,
    STUDENT,
    TEACHER,
    TRAINING,
    PackedLinear,
    computes,
    pick_precision,
)
from tests.conftest import make_sentences
from tests.pipeline.test_teacher import embed, load

CPU = torch.device("cpu")
JOBS = (TEACHER, STUDENT, TRAINING, FINETUNING)


@pytest.fixture
def probe(monkeypatch):
    """Answer the probe for bfloat16: `instructions` of the processor, and the operations that do `not` run."""

    def answer(instructions, without=()):
        monkeypatch.setattr(hardware, "_has_bf16_instructions", lambda device: instructions)
        samples = dict.fromkeys(without, _missing)
        monkeypatch.setattr(hardware, "_SAMPLES", {**hardware._SAMPLES, **samples})
        computes.cache_clear()

    yield answer
    monkeypatch.undo()
    computes.cache_clear()


def _missing(dtype, device):
    if dtype == torch.bfloat16:
        raise RuntimeError("could not create a primitive descriptor for the LSTM forward propagation primitive")
    return torch.ones(1)


def _runs(dtype, device):
    return torch.ones(1)


@pytest.mark.parametrize("job", JOBS)
def test_float32_always_runs(job):
    assert all(computes(operation, torch.float32, CPU) for operation in job)


@pytest.mark.parametrize("job", JOBS)
def test_auto_is_what_runs_and_is_fast(probe, monkeypatch, job):
    monkeypatch.setattr(hardware, "_SAMPLES", dict.fromkeys(hardware._SAMPLES, _runs))
    probe(instructions=True)
    assert pick_precision("auto", CPU, job) == torch.bfloat16
    probe(instructions=True, without=[job[-1]])
    assert pick_precision("auto", CPU, job) == torch.float32
    probe(instructions=False)
    assert pick_precision("auto", CPU, job) == torch.float32


def test_a_precision_that_is_asked_for_and_does_not_run_is_refused(probe):
    probe(instructions=True, without=["lstm"])
    with pytest.raises(UserError, match=r"^--precision bf16: .* no lstm in bfloat16 on this CPU; use --precision fp32"):
        pick_precision("bf16", CPU, STUDENT)
    assert pick_precision("fp32", CPU, STUDENT) == torch.float32
    # What runs without instructions may be asked for.
    probe(instructions=False)
    assert pick_precision("bf16", CPU, ("linear",)) == torch.bfloat16


def test_the_probe_draws_no_random_number():
    computes.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for operation in hardware._SAMPLES:
        computes(operation, torch.bfloat16, CPU)
    assert torch.equal(torch.rand(3), expected)


def test_an_operation_that_gives_no_numbers_does_not_run(monkeypatch):
    monkeypatch.setitem(hardware._SAMPLES, "linear", lambda dtype, device: torch.tensor(torch.nan))
    computes.cache_clear()
    assert not computes("linear", torch.float32, CPU)
    monkeypatch.undo()
    computes.cache_clear()


@pytest.mark.parametrize("command", ["encode", "train-student"])
def test_bf16_that_does_not_run_is_one_line(probe, sd, shards, student_folder, tmp_path, capsys, command):
    probe(instructions=True, without=["lstm", "lstm backward"])
    (tmp_path / "in.txt").write_text("One dog ran.\n")
    out = tmp_path / "out.npy"
    arguments = {
        "encode": ("--student", student_folder, "--input", tmp_path / "in.txt", "--out", out),
        "train-student": ("--shards", shards, "--out", out),
    }[command]
    assert sd(command, *arguments, "--precision", "bf16") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "in bfloat16 on this CPU; use --precision fp32" in line
    assert not out.exists()


def test_in_python_it_is_an_error_too(probe, student_folder):
    probe(instructions=True, without=["lstm"])
    with pytest.raises(UserError, match="use --precision fp32"):
        Student.load(student_folder).encode(["One dog ran."], torch.bfloat16)


@pytest.mark.parametrize("packed", [True, False])
def test_a_teacher_is_the_same_with_packed_layers_and_without(probe, monkeypatch, teacher_folder, packed):
    expected = embed(load(teacher_folder), make_sentences(20))
    if not packed:
        # As where PyTorch renamed its private operators.
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", None, raising=False)
        computes.cache_clear()
    elif not computes("packed linear", torch.float32, CPU):
        pytest.skip("this PyTorch packs no linear layers")
    teacher = load(teacher_folder)
    kinds = {type(module) for module in teacher.model.modules() if isinstance(module, nn.Linear | PackedLinear)}
    assert kinds == {PackedLinear if packed else nn.Linear}
    torch.testing.assert_close(
        torch.from_numpy(embed(teacher, make_sentences(20))), torch.from_numpy(expected), atol=1e-5, rtol=0
    )
