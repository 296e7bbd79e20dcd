"""A teacher that computes nothing, to measure the throughput of the rest of stage one."""

from collections.abc import Callable

import numpy as np
import torch

from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.engines import TeacherSpec
from sentence_distill.pipeline.load import locate_teacher
from sentence_distill.pipeline.teacher import PendingEmbeddings, Teacher


class NoTeacher(Teacher):
    """Teacher that returns zeros of the right shape immediately."""

    def launch(
        self, tokens: Tokens, token_budget: int, advance: Callable[[int], None] = lambda count: None
    ) -> PendingEmbeddings:
        """Return zeros."""
        advance(len(tokens))
        return PendingEmbeddings(torch.zeros(len(tokens), self.dim), None, np.arange(len(tokens)))


def no_teacher(name: str) -> Teacher:
    """Make a teacher with the tokenizer, sizes and fingerprint of teacher `name`, but without its computation."""
    teacher = TeacherSpec(located=locate_teacher(name)).load("cpu")
    teacher.__class__ = NoTeacher
    return teacher
