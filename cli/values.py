"""Option values that click has no type for, most as callbacks; None where the option is not given."""

import re

import click

from sentence_distill.pipeline.teacher_folder import SENTENCE_POOLINGS

SEED = click.IntRange(0, 2**31 - 1)
"""A seed. scikit-learn's end at 2**32 - 1, and sd eval --glue counts on from the first."""


def layer_numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Layers of a teacher, as in 3,6."""
    try:
        return None if value is None else tuple(int(part) for part in str(value).split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of layer numbers such as -1 or 3,6") from None


def pooling_names(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Poolings of a teacher, as in mean+max; pooler and logits stand alone."""
    if value is None or value in ("pooler", "logits") or set(value.split("+")) <= set(SENTENCE_POOLINGS):
        return value
    raise click.BadParameter(
        f"{value!r} is none of {', '.join(SENTENCE_POOLINGS)}, or several joined by +, pooler or logits"
    )


def share(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """One of so many shares, as in 3/64."""
    if value is None:
        return None
    try:
        number, count = (int(part) for part in value.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 1 <= number <= count:
        raise click.BadParameter(f"{value!r} is no share such as 1/4 to 4/4")
    return number, count


def seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A time, as in 90s, 30m or 2h."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(value).strip())
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{value!r} is no time such as 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Numbers above 0, as in 3e-4,1e-3."""
    if value is None:
        return None
    try:
        found = tuple(dict.fromkeys(float(part) for part in str(value).split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 < number < float("inf") for number in found):
        raise click.BadParameter(f"{value!r} is no list of numbers above 0 such as 1e-3 or 3e-4,1e-3")
    return found


def counts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers above 0, as in 1,8; ascending, each once."""
    try:
        found = tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        found = (0,)
    if found[0] < 1:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 1,8")
    return found


def fractions(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Shares of a whole, as in 0.01,0.1,1."""
    found = numbers(context, parameter, value)
    if found is not None and max(found) > 1:
        raise click.BadParameter(f"{value!r}: a share is at most 1")
    return found
