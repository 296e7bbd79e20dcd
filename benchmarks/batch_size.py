"""The batch size at which a contender is at its best."""

from collections.abc import Callable

_TRIED = (8, 16, 32, 64, 128)


def fastest_batch_size(seconds: Callable[[int], float]) -> int:
    """The fastest of some batch sizes; `seconds` is what a contender takes with one."""
    taken = {size: seconds(size) for size in _TRIED}
    return min(taken, key=taken.__getitem__)
