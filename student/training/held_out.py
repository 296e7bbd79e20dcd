"""The held-out sentences of a run, on which it is validated."""

import torch

from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.fidelity import SCORES, fidelity, public_targets
from sentence_distill.student.model import encode_tokens
from sentence_distill.student.training.ranks import Ranks
from sentence_distill.student.training.stream import ShardStream


class HeldOut:
    """Sentences that are never trained on."""

    def __init__(self, stream: ShardStream) -> None:
        """Read them.

        Raises:
            UserError: they are too few.
        """
        self._tokens, self._targets = stream.held_out()

    def __len__(self) -> int:
        return len(self._tokens)

    def scores(self, encoder: StudentEncoder, ranks: Ranks) -> dict[str, float]:
        """Fidelity of the student (see `fidelity`), the same for all processes.

        One measures and tells the others, so that all take the same decision: another machine might round otherwise.

        Raises:
            LostRankError: another process is gone.
        """
        scores = torch.zeros(len(SCORES), dtype=torch.float64, device=ranks.device)
        if ranks.main:
            dim, normalize = encoder.config.target_dims[-1], encoder.config.normalize
            targets = public_targets(self._targets, dim, normalize=normalize)
            found = fidelity(encode_tokens(encoder, self._tokens), targets)
            scores.copy_(torch.tensor([found[name] for name in SCORES]))
        ranks.sum([scores])
        return dict(zip(SCORES, scores.tolist(), strict=True))
