"""Vectors that a device still computes, and how they come to the host."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Launched:
    """Vectors on their way from the device.

    Args:
        copy: float32[n, dim] in host memory, complete once `done` has passed.
        done: CUDA's event, or None on a CPU.
        order: int64[n], the sentence that each row belongs to.
    """

    copy: torch.Tensor
    done: Any
    order: np.ndarray

    @classmethod
    def fetch(cls, vectors: torch.Tensor, order: np.ndarray) -> "Launched":
        """Queue the copy to the host behind the computation, and before whatever is launched next."""
        if vectors.device.type != "cuda":
            return cls(vectors, None, order)
        copy = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        copy.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(vectors.device))
        return cls(copy, done, order)

    def vectors(self) -> np.ndarray:
        """float32[n, dim], in the order of the sentences; waits for the device."""
        if self.done is not None:
            self.done.synchronize()
        out = np.empty(self.copy.shape, dtype=np.float32)
        out[self.order] = self.copy.numpy()
        return out
