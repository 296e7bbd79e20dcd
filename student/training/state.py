"""Where a training run stands."""

import math
from dataclasses import dataclass


@dataclass
class State:
    """Where a run stands; with the weights and the optimizers' moments it is all that a resume needs."""

    epoch: int = 0
    """Epochs that are complete."""
    step: int = 0
    """Steps done, over all epochs."""
    step_in_epoch: int = 0
    """Steps done in the current epoch."""
    sentences: int = 0
    """Sentences done, over all epochs."""
    seconds: float = 0.0
    """Time spent training."""
    loss: float = 0.0
    """Sum of the losses of all sentences since the last validation."""
    validated: int = 0
    """Sentences done at the last validation."""
    best: float = -math.inf
    """Highest held-out cosine so far."""
    worse: int = 0
    """Validations since then."""
