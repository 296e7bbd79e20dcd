"""Options declared by hand; each command that takes its options from a config needs none of this."""

import re
from collections.abc import Callable, Sequence
from typing import Any

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


# Options that several commands have, each declared once so that it means the same everywhere.

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class AliasedOption(click.Option):
    """An option with older names, which still work and which no help shows."""

    def __init__(self, *arguments: Any, aliases: Sequence[str] = (), **settings: Any) -> None:
        declarations, *others = arguments
        super().__init__([*declarations, *aliases], *others, **settings)
        self._aliases = set(aliases)

    def get_help_record(self, context: click.Context) -> tuple[str, str] | None:
        """Describe the option by its present names."""
        every = self.opts
        self.opts = [name for name in every if name not in self._aliases]
        try:
            return super().get_help_record(context)
        finally:
            self.opts = every


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


def inputs_of(arguments: tuple[str, ...], options: tuple[str, ...], default: str | None = None) -> tuple[str, ...]:
    """Return the inputs that were named as arguments or options."""
    if named := (*arguments, *options):
        return named
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
