"""Click options made from the fields of a config (`data.options`), and options from a file."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING
from functools import wraps
from pathlib import Path
from typing import Any

import click

from sentence_distill.data.errors import UserError
from sentence_distill.data.options import Field, build, fields_of, parse_list, written

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


BASIC, ADVANCED = "Options", "Advanced options"


def options_of(
    config: type, *, into: str = "config", basic: Collection[str] | None = None, heading: str = BASIC
) -> _Decorator:
    """Give a command the options of a config, and pass it the config that they make as its argument `into`.

    A `SectionedCommand` lists them under `heading`; if some fields are `basic`, the others are listed as advanced.
    """
    found = fields_of(config)
    if unknown := set(basic or ()) - {field.name for field in found}:
        raise ValueError(f"{config.__name__} has no field {min(unknown)!r}")
    headings = {field.name: heading if basic is None or field.name in basic else ADVANCED for field in found}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(**values: Any) -> Any:
            given = {}
            for field in found:
                value = values.pop(field.name)
                if field.repeated:
                    value = (*values.pop(_argument_name(field), ()), *value) or field.default
                given[field.name] = value
            return command(**{into: build(config, given)}, **values)

        # Click reads them from last to first. Those that the command declares itself come after these.
        parameters = [parameter for field in found for parameter in _parameters(field, headings[field.name])]
        run.__click_params__ = [*getattr(command, "__click_params__", ()), *reversed(parameters)]  # type: ignore[attr-defined]
        return run

    return decorate


def _argument_name(field: Field) -> str:
    """Return the argument's name; an option may have the same meaning: `sd embed FILE`, `sd embed --corpus FILE`."""
    return f"{field.name}_arguments" if field.flags else field.name


def _parameters(field: Field, heading: str) -> list[click.Parameter]:
    kind = _Value(field)
    default = None if field.repeated else field.default
    found: list[click.Parameter] = []
    if field.argument:
        required = default is MISSING
        settings: dict[str, Any] = {"required": required, "default": None if required else default}
        names = [_argument_name(field)]
        count = -1 if field.repeated else 1
        found.append(click.Argument(names, type=kind, nargs=count, metavar=field.metavar, **settings))
        if not field.flags:
            return found
    names = [*(field.flags or (field.flag,)), field.name]
    shown = field.shown
    if field.kind is bool:
        settings = {"is_flag": True, "default": default}
        if "/" in names[0]:
            if not (shown or field.optional):
                shown = names[0].split("/")[not default].removeprefix("--")
        elif default is True:
            # A flag such as `--no-text` turns off a field that is true by default.
            settings["flag_value"] = False
    else:
        if default not in (None, "", ()):
            shown = shown or written(default)
        # A field that is also an argument has that one's metavar: the option drops its brackets.
        metavar = (field.metavar or "").strip("[].") if field.argument else field.metavar
        settings = {"type": kind, "default": default, "multiple": field.repeated, "metavar": metavar or _metavar(field)}
    help = f"{field.help}  [default: {shown}]" if shown else field.help
    return [*found, _Option([*names, *field.aliases], aliases=field.aliases, heading=heading, help=help, **settings)]


def _metavar(field: Field) -> str:
    if field.choices:
        return f"[{'|'.join(field.choices)}]"
    name = {int: "N", float: "X", Path: "PATH"}.get(field.kind, "TEXT")
    return f"{name}[,{name}…]" if field.several else name


class _Value(click.ParamType[Any]):
    """Reads and checks a value as its config does, so that wrong usage is reported before anything is opened."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.name = field.name

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Read text; a default that is a value already is returned unchanged."""
        if not isinstance(value, str):
            return value
        field = self.field
        try:
            if field.parse:
                read = field.parse(value)
            elif field.several:
                read = parse_list(field.kind, value)
            elif field.choices:
                read = next((choice for choice in field.choices if choice.lower() == value.lower()), value)
            else:
                read = field.kind(value)
        except ValueError as error:
            is_number = field.kind in (int, float) and not (field.parse or field.several)
            kind = "whole number" if field.kind is int else "number"
            self.fail(f"{value!r} is not a {kind}" if is_number else str(error), parameter, context)
        for one in read if field.several else (read,):
            if problem := field.problem_of(one):
                self.fail(f"{value!r} {problem}" if len(value) < 100 else problem, parameter, context)
        return read


class _Option(click.Option):
    """An option with a heading in the help, and older names that still work but are not shown there."""

    def __init__(self, names: list[str], *, aliases: Sequence[str], heading: str, **settings: Any) -> None:
        super().__init__(names, **settings)
        self._aliases = aliases
        self.heading = heading

    def get_help_record(self, context: click.Context) -> tuple[str, str] | None:
        """Describe the option without its older names."""
        every = self.opts
        self.opts = [name for name in every if name not in self._aliases]
        try:
            return super().get_help_record(context)
        finally:
            self.opts = every


class SectionedCommand(click.Command):
    """A command whose help lists the options under their headings, the basic ones first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list of options for each heading; options that the command declares itself are basic."""
        sections: dict[str, list[tuple[str, str]]] = {BASIC: []}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(parameter, "heading", BASIC), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


# `--config FILE`: a command's options from a YAML or TOML file; those on the command line win.


def config_option(command: Any) -> Any:
    """Give a command the option `--config`."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_load,
        help="YAML or TOML file with options by their long names; the command line overrides it.",
    )(command)


def _load(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    known = {
        flag.removeprefix("--"): option
        for option in context.command.params
        if isinstance(option, click.Option) and option is not parameter
        for flag in option.opts
    }
    defaults: dict[str, Any] = {}
    for key, value in _read(path).items():
        option = known.get(str(key).replace("_", "-"))
        if option is None:
            command = context.info_name
            raise UserError(f"{path}: {key!r} is not an option of {command}; sd {command} --help lists them")
        # A flag such as --overwrite can't be turned off on the command line, so in a file it would act on every run.
        if option.is_flag and not option.secondary_opts:
            raise UserError(f"{path}: {key} belongs on the command line")
        if option.is_flag != isinstance(value, bool) or value is None or isinstance(value, dict) or value == []:
            kind = "true or false" if option.is_flag else "one value"
            raise UserError(f"{path}: {key} must be {kind}, not {value!r}")
        # Click checks text in the same way as it checks the command line.
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        defaults[str(option.name)] = value if option.is_flag else text
    context.default_map = {**(context.default_map or {}), **defaults}


def _read(path: Path) -> dict[str, Any]:
    # Imported here because few runs have a file.
    import tomllib

    import yaml

    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise UserError(f"--config {path}: write it as .yaml, .yml or .toml")
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold options and their values, not a {type(values).__name__}")
    return values
