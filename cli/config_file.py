"""`--config FILE`: a command's options from a YAML or TOML file; those on the command line win."""

from pathlib import Path
from typing import Any

import click

from sentence_distill.data.errors import UserError


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
