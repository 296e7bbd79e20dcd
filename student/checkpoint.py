"""Checkpoints of training: what a run needs to go on as if it had never stopped."""

import io
from pathlib import Path
from typing import Any

import torch

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import write_atomically


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through memory: onto a full disk PyTorch's own writer fails with an error that names no reason.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; no code in it is run.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path} to resume; leave --resume out to begin") from None
    except OSError:
        raise
    except Exception as error:  # a file of random bytes makes PyTorch raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} is damaged ({reason}); --overwrite begins again") from error
