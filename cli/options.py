"""Click options made from the fields of a config (`data.options`), and options from a file."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING
from functools import wraps
from pathlib import Path
from typing import Any

import click

from sentence_distill.data.errors import UserError
from sentence_distill.data.options import Field, build, fields_of, parse_list, problem_of, written

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def options_of(config: type, *, skip: Sequence[str] = (), into: str = "config") -> _Decorator:
    """Give a command the options of a config, and hand it the config that they make.

    Args:
        config: a dataclass with fields declared by `data.options.option`.
        skip: fields that are no options of this command.
        into: argument of the command that takes the config.
    """
    found = [each for each in fields_of(config) if each.name not in skip]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(**values: Any) -> Any:
            given = {each.name: _taken(each, values) for each in found}
            return command(**{into: build(config, given)}, **values)

        # Click reads them from last to first. Those that the command declares itself come after these.
        parameters = [parameter for each in found for parameter in _parameters(each)]
        run.__click_params__ = [*getattr(command, "__click_params__", ()), *reversed(parameters)]  # type: ignore[attr-defined]
        return run

    return decorate


def _is_both(field: Field) -> bool:
    """Tell whether values come as arguments and by an option, as in `sd embed FILE` and `sd embed --corpus FILE`."""
    return field.option.argument and bool(field.option.flags)


def _taken(field: Field, values: dict[str, Any]) -> Any:
    """Take the value of a field out of those that click read."""
    value = values.pop(field.name)
    if field.option.repeated:
        value = (*(values.pop(_argument_name(field)) if _is_both(field) else ()), *value)
        return value or field.default
    return value


def _argument_name(field: Field) -> str:
    return f"{field.name}_arguments" if _is_both(field) else field.name


def _parameters(field: Field) -> list[click.Parameter]:
    option = field.option
    found: list[click.Parameter] = []
    if option.argument:
        name = _argument_name(field)
        required = field.default is MISSING and not option.repeated
        default = None if option.repeated or required else field.default
        count = -1 if option.repeated else 1
        kind = _Value(field)
        found.append(
            click.Argument([name], nargs=count, required=required, default=default, type=kind, metavar=option.metavar)
        )
    if not option.argument or option.flags:
        found.append(_option(field))
    return found


def _option(field: Field) -> click.Option:
    option = field.option
    names = [*(option.flags or (field.flag,)), field.name]
    told = option.default
    if field.kind is bool:
        # Of `--no-text`, which sets a field that is otherwise true.
        negative = field.default is True and "/" not in names[0]
        settings: dict[str, Any] = {"is_flag": True, "default": field.default}
        settings |= {"flag_value": False} if negative else {}
        if "/" in names[0] and not field.optional:
            told = told or names[0].split("/")[not field.default].removeprefix("--")
    else:
        if field.default not in (None, "", ()) and not option.repeated:
            told = told or written(field.default)
        settings = {"type": _Value(field), "default": None if option.repeated else field.default}
        # Of what is an argument as well, without the brackets of the argument.
        metavar = (option.metavar or "").strip("[].") if option.argument else option.metavar
        metavar = metavar or _metavar(field)
        settings |= {"multiple": option.repeated, "metavar": metavar}
    help = f"{option.help}  [default: {told}]" if told else option.help
    return AliasedOption(names, aliases=option.aliases, help=help, **settings)


def _metavar(field: Field) -> str:
    if field.choices:
        return f"[{'|'.join(field.choices)}]"
    name = {int: "N", float: "X", Path: "PATH"}.get(field.kind, "TEXT")
    return f"{name}[,{name}…]" if field.several else name


class _Value(click.ParamType[Any]):
    """Reads and checks a value as its config does, so that wrong usage is told before anything is opened."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.name = field.name

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Read text; what is a value already stays as it is."""
        if not isinstance(value, str):
            return value
        try:
            read = self._read(value)
        except ValueError as error:
            self.fail(str(error), parameter, context)
        for one in read if self.field.several and isinstance(read, tuple) else (read,):
            if problem := problem_of(self.field, one):
                self.fail(f"{value!r} {problem}" if len(str(value)) < 100 else problem, parameter, context)
        return read

    def _read(self, value: str) -> Any:
        if self.field.option.parse:
            return self.field.option.parse(value)
        if self.field.several:
            return parse_list(self.field.kind, value)
        if self.field.choices:
            return next((choice for choice in self.field.choices if choice.lower() == value.lower()), value)
        try:
            return self.field.kind(value)
        except ValueError:
            raise ValueError(f"{value!r} is no {'whole number' if self.field.kind is int else 'number'}") from None


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


# `--config FILE`: a command's options from a YAML or TOML file; those on the command line win.


def config_option(command: Any) -> Any:
    """Give a command the option `--config`."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_load,
        help="YAML or TOML file of options by their long names; those given here win.",
    )(command)


def _load(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    known = {
        flag.removeprefix("--"): option
        for option in context.command.params
        if isinstance(option, click.Option) and option is not parameter
        for flag in option.opts
        if flag.startswith("--")
    }
    defaults: dict[str, Any] = {}
    for key, value in _read(path).items():
        option = known.get(str(key).replace("_", "-"))
        if option is None:
            command = context.info_name
            raise UserError(f"{path}: {key!r} is no option of {command}; sd {command} --help lists them")
        defaults[str(option.name)] = _value(option, value, f"{path}: {key}")
    context.default_map = {**(context.default_map or {}), **defaults}


def _value(option: click.Option, value: Any, place: str) -> Any:
    """As the command line would give it, so that click checks it in the same way."""
    if option.is_flag:
        # One that can't be undone on the command line would say the same at every later start.
        if not option.secondary_opts:
            raise UserError(f"{place} belongs on the command line")
        if not isinstance(value, bool):
            raise UserError(f"{place} must be true or false, not {value!r}")
        return value
    if isinstance(value, list) and value:
        return ",".join(map(str, value))
    if value is None or isinstance(value, bool | dict | list):
        raise UserError(f"{place} must be one value, not {value!r}")
    return str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} can't be read ({error})") from error
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise UserError(f"--config {path}: write it as .yaml, .yml or .toml")
    import tomllib

    import yaml

    try:
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text) or {}
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold options and their values, not a {type(values).__name__}")
    return values
