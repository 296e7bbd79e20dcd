"""Search for the fastest batch size of a contender."""

from collections.abc import Callable

_TRIED = (8, 16, 32, 64, 128)


def fastest_batch_size(seconds: Callable[[int], float]) -> int:
    """Return the fastest of some batch sizes; `seconds` times a contender with one of them."""
    taken = {size: seconds(size) for size in _TRIED}
    return min(taken, key=taken.__getitem__)
