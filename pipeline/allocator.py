"""What PyTorch leaves to the C library: the memory of freed tensors."""

import ctypes

# Names and the largest value that glibc takes, from malloc.h and mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD, _NO_TRIM = 32 << 20, (1 << 31) - 1


def keep_freed_memory() -> None:
    """Let glibc keep freed memory of up to 32 MiB a tensor instead of giving it back and faulting it in again.

    Activations of a layer or a step are freed before the next one's are allocated. New pages for each cost a tenth of
    the teacher's time and a sixth of the student's training. Other C libraries have no `mallopt`, and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NO_TRIM)
