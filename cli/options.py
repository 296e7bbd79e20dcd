"""Options that several commands have, each declared once so that it means the same everywhere."""

from collections.abc import Callable, Sequence
from typing import Any

import click

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
