import errno
import os
import zipfile

import numpy as np
import pytest

from sentence_distill.data.errors import UserError
from sentence_distill.student.glue import PARTS, write_submission
from tests.conftest import contents

ELEVEN = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]
EVERYTHING = {name: ([0, 1], [1.0, 0.0]) for name in ELEVEN}


def test_a_submission_has_the_eleven_parts_that_the_site_asks_for():
    assert list(PARTS) == ELEVEN
    assert PARTS["MNLI-mm"][0].name == "MNLI"
    assert [PARTS[name][1] for name in ("MNLI-m", "MNLI-mm", "AX")] == ["test_matched", "test_mismatched", "test"]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("CoLA", [1, 0, 1], ["1", "0", "1"]),
        ("WNLI", [0, 1, 0], ["0", "1", "0"]),
        ("STS-B", [3.14159, -0.2, 5.7], ["3.142", "0.000", "5.000"]),
        ("MNLI-m", [0, 1, 2], ["entailment", "neutral", "contradiction"]),
        ("AX", [2, 1, 0], ["contradiction", "neutral", "entailment"]),
        ("QNLI", [0, 1, 1], ["entailment", "not_entailment", "not_entailment"]),
        ("RTE", [1, 0, 1], ["not_entailment", "entailment", "not_entailment"]),
    ],
)
def test_predictions_are_written_in_the_task_s_own_terms_and_order(tmp_path, name, values, expected):
    write_submission(tmp_path / "new", {name: ([4, 0, 9], np.array(values, dtype=np.float64))})
    first, second, third = expected
    content = f"index\tprediction\n4\t{first}\n0\t{second}\n9\t{third}\n"
    assert (tmp_path / "new" / f"{name}.tsv").read_bytes() == content.encode()


def test_the_zip_holds_the_files_at_its_root_and_nothing_else(tmp_path):
    submission = write_submission(tmp_path, EVERYTHING)
    assert (submission.path, submission.missing) == (tmp_path / "submission.zip", ())
    with zipfile.ZipFile(submission.path) as archive:
        assert archive.namelist() == sorted(f"{name}.tsv" for name in ELEVEN)
        assert archive.read("RTE.tsv") == b"index\tprediction\n0\tnot_entailment\n1\tentailment\n"


def test_what_an_incomplete_submission_lacks_is_named(tmp_path):
    given = {name: EVERYTHING[name] for name in ELEVEN if name not in ("QQP", "AX")}
    assert write_submission(tmp_path, given).missing == ("QQP", "AX")
    assert not (tmp_path / "AX.tsv").exists()


def test_the_same_predictions_give_the_same_zip_whatever_their_order(tmp_path):
    first = write_submission(tmp_path / "first", EVERYTHING).path
    second = write_submission(tmp_path / "second", dict(reversed(EVERYTHING.items()))).path
    assert first.read_bytes() == second.read_bytes()


def test_a_row_without_prediction_and_a_prediction_that_is_no_number_are_refused(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_submission(tmp_path, {"RTE": ([0, 1], [1.0])})
    with pytest.raises(UserError, match="STS-B is nan"):
        write_submission(tmp_path, {"STS-B": ([0], [float("nan")])})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["CoLA.tsv", "submission.zip"])
def test_a_full_disk_leaves_the_files_that_were_there(tmp_path, monkeypatch, name):
    write_submission(tmp_path, {"CoLA": ([0], [1])})
    before = contents(tmp_path)
    fsync = os.fsync

    def full(descriptor):
        if any(os.path.samestat(os.fstat(descriptor), path.stat()) for path in tmp_path.glob(f"{name}*")):
            os.ftruncate(descriptor, 5)
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_submission(tmp_path, {"CoLA": ([0], [1])})
    assert contents(tmp_path) == before
