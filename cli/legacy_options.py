"""Options declared by hand; each command that takes its options from a config needs none of this."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from sentence_distill.cli.options import AliasedOption
from sentence_distill.data import options
from sentence_distill.data.options import parse_seconds, parse_share
from sentence_distill.pipeline.teacher_folder import SENTENCE_POOLINGS

SEED = click.IntRange(options.SEED["least"], options.SEED["most"])
_Value = TypeVar("_Value")


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
    return None if value is None else _parsed(parse_share, value)


def seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A time, as in 90s, 30m or 2h."""
    return None if value is None else _parsed(parse_seconds, str(value))


def _parsed(parse: Callable[[str], _Value], text: str) -> _Value:
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def counts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers above 0, as in 1,8; ascending, each once."""
    try:
        found = tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        found = (0,)
    if found[0] < 1:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 1,8")
    return found


# Options that several commands have, each declared once so that it means the same everywhere.

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def text_column_option(help: str, *, default: str | None = "text", aliases: Sequence[str] = ()) -> _Decorator:
    """`--text-column`."""
    return click.option(
        "--text-column",
        cls=AliasedOption,
        aliases=aliases,
        default=default,
        show_default=default is not None,
        metavar="NAME[,NAME]",
        help=help,
    )


def input_arguments(default: str | None) -> _Decorator:
    """Inputs as arguments, and by `--input`, which may be repeated; see `inputs_of`.

    Args:
        default: what is read if none is named; None requires one.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        said = f"  [default: {default}]" if default else ""
        command = click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="PATH",
            help=f"The same as the argument INPUT; may be repeated.{said}",
        )(command)
        return click.argument("arguments", nargs=-1, metavar="INPUT...")(command)

    return decorate


def inputs_of(arguments: tuple[str, ...], named: tuple[str, ...], default: str | None = None) -> tuple[str, ...]:
    """Return the inputs that were named as arguments or options."""
    if every := (*arguments, *named):
        return every
    if default is None:
        raise click.UsageError("name what to read: a file, a folder, a glob or a URL, or - for standard input")
    return (default,)


def input_format_option(formats: Sequence[str], *, aliases: Sequence[str] = ()) -> _Decorator:
    """`--input-format`."""
    return click.option(
        "--input-format",
        cls=AliasedOption,
        aliases=aliases,
        type=click.Choice(formats),
        default=None,
        help="Format of the input.  [default: found from content and name]",
    )


def overwrite_option(help: str = "Replace what is there already.") -> _Decorator:
    """`--overwrite`."""
    return click.option("--overwrite", is_flag=True, help=help)
