"""A teacher that computes nothing, to see what the rest of stage one sustains."""

from collections.abc import Callable

import numpy as np
import torch

from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.engines import TeacherSpec
from sentence_distill.pipeline.load import locate_teacher
from sentence_distill.pipeline.teacher import PendingEmbeddings, Teacher


class NoTeacher(Teacher):
    """Gives zeros of the right shape, at once."""

    def launch(
        self, tokens: Tokens, token_budget: int, advance: Callable[[int], None] = lambda count: None
    ) -> PendingEmbeddings:
        """Zeros."""
        advance(len(tokens))
        return PendingEmbeddings(torch.zeros(len(tokens), self.dim), None, np.arange(len(tokens)))


def no_teacher(name: str) -> Teacher:
    """Tokenizer, sizes and fingerprint of teacher `name`, without its work."""
    teacher = TeacherSpec(located=locate_teacher(name)).load("cpu")
    teacher.__class__ = NoTeacher
    return teacher
