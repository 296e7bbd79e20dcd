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
        flag.removeprefix("--"): option.name
        for option in context.command.params
        if isinstance(option, click.Option) and option is not parameter
        for flag in option.opts
        if flag.startswith("--")
    }
    defaults: dict[str, Any] = {}
    for key, value in _read(path).items():
        name = known.get(str(key).replace("_", "-"))
        if name is None:
            raise UserError(
                f"{path}: {key!r} is no option of {context.info_name}; sd {context.info_name} --help lists them"
            )
        if isinstance(value, dict):
            raise UserError(f"{path}: {key} holds a table; options stand at the top level, one value each")
        defaults[name] = ",".join(map(str, value)) if isinstance(value, list) else value
    context.default_map = {**(context.default_map or {}), **defaults}


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
