"""Adam for a table of which a step touches few rows."""

from typing import Any

import torch

# Decay of the second moment a step, and what keeps the quotient finite: torch.optim.Adam's own.
_BETA, _EPSILON = 0.999, 1e-8


class RowAdam:
    """What torch.optim.Adam with betas of (0, 0.999) does to a whole table, at the cost of the rows of a step.

    A row's second moment decays with every step, also with those that have no gradient for it; that is made up for when
    the row is next touched. So a word that is in a share p of the batches moves by about rate / sqrt(p) each time. In
    torch.optim.SparseAdam, whose moments know nothing of the steps between, every word moves by the rate, and rare ones
    hardly get away from where they began. A first moment would hand a gradient out over steps that mostly lack the row,
    so there is none.
    """

    def __init__(self, table: torch.Tensor) -> None:
        """Begin.

        Args:
            table: float32[n, width], updated in place.
        """
        self._table = table
        self._steps = 0
        self._second = torch.zeros_like(table)
        # The step that last touched each row.
        self._touched = torch.zeros(len(table), dtype=torch.int64, device=table.device)

    @torch.no_grad()
    def step(self, rows: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Update some rows.

        Args:
            rows: int64[u], all different.
            gradient: float32[u, width], theirs.
            rate: learning rate.
        """
        self._steps += 1
        decay = _BETA ** (self._steps - self._touched[rows])[:, None].float()
        second = self._second[rows] * decay + (1 - _BETA) * gradient * gradient
        self._second[rows] = second
        self._touched[rows] = self._steps
        unbiased = second / (1 - _BETA**self._steps)
        self._table.index_add_(0, rows, gradient / (unbiased.sqrt() + _EPSILON), alpha=-rate)

    def state_dict(self) -> dict[str, Any]:
        """State to go on from."""
        return {"steps": self._steps, "second": self._second, "touched": self._touched}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._steps = state["steps"]
        self._second.copy_(state["second"])
        self._touched.copy_(state["touched"])
