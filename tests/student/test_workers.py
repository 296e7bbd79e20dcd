import subprocess
import sys
import threading

import pytest
import torch

from sentence_distill.student.batches import map_on_cores


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_tasks_run_side_by_side_each_with_one_thread_and_keep_their_order(four_threads):
    threads = set()
    together = threading.Barrier(4, timeout=30)

    def task(number):
        together.wait()
        threads.add((threading.get_ident(), torch.get_num_threads()))
        return number

    assert map_on_cores(task, range(8)) == list(range(8))
    assert len(threads) == 4
    assert {count for _, count in threads} == {1}


def test_the_callers_threads_stay_also_after_an_error(four_threads):
    def task(number):
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        map_on_cores(task, [0] * 20)
    assert torch.get_num_threads() == 4
    fresh = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [4]


def test_few_tasks_run_where_they_are_asked_for(four_threads):
    assert map_on_cores(lambda task: threading.get_ident(), [1, 2]) == [threading.get_ident()] * 2


def test_a_forked_process_computes_too():
    script = """
import os, torch
from sentence_distill.student.batches import map_on_cores
torch.set_num_threads(2)
# Of a size that is shared by OpenMP's threads, and nothing of MKL's, which has locks of its own.
work = lambda task: float(torch.ones(1_000_000).mul(2).sum())
expected = map_on_cores(work, [1])
child = os.fork()
if child == 0:
    os._exit(0 if map_on_cores(work, range(8)) == expected * 8 and map_on_cores(work, [1]) == expected else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
