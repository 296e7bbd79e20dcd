"""Options of a job: a dataclass field says its type, default, help and check, once for Python and the command line."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sentence_distill.data.errors import UserError

Config = TypeVar("Config")


@dataclass(frozen=True)
class Option:
    """What a field of a config says besides its type and default."""

    help: str
    """A sentence that stands alone."""
    default: str | None = None
    """What the help shows as default instead of the value, if it depends on something."""
    metavar: str | None = None
    """Placeholder of the value."""
    flags: tuple[str, ...] = ()
    """Names on the command line, if not that of the field: `--no-text`, `--split/--no-split`."""
    aliases: tuple[str, ...] = ()
    """Older names, which work and which no help shows."""
    parse: Callable[[str], Any] | None = None
    """Reads the value from text; raises ValueError with what is wrong."""
    least: float | None = None
    """Least value, included unless `above`."""
    above: float | None = None
    """Largest value that is too small."""
    most: float | None = None
    """Largest value."""
    below: float | None = None
    """Smallest value that is too large."""
    repeated: bool = False
    """Whether the option may be repeated, a value each time."""
    argument: bool = False
    """Whether it is a positional argument."""
    given: bool = True
    """Whether it belongs to the command that `command_line` writes."""


def option(default: Any, help: str, *, shown: str | None = None, **settings: Any) -> Any:
    """Declare a field of a config; see `Option`.

    Args:
        default: value if the option is not given.
        help: a sentence that stands alone.
        shown: what the help shows as default.
        **settings: the other fields of `Option`.
    """
    return field(default=default, metadata={"option": Option(help=help, default=shown, **settings)})


@dataclass(frozen=True)
class Field:
    """A field of a config, with its type taken apart."""

    name: str
    kind: type
    """Type of the value, or of each one in a tuple: bool, int, float, str or Path."""
    choices: tuple[str, ...]
    """The values of a Literal; otherwise empty."""
    several: bool
    """Whether the value is a tuple, separated by commas on the command line."""
    optional: bool
    """Whether None is a value."""
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """The first name on the command line."""
        return self.option.flags[0].partition("/")[0] if self.option.flags else f"--{self.name.replace('_', '-')}"


def fields_of(config: type) -> list[Field]:
    """Return the options of a config, those of configs inside it in their place."""
    hints = get_type_hints(config)
    found = []
    for each in fields(config):
        hint = hints[each.name]
        if "option" in each.metadata:
            found.append(_taken_apart(each.name, hint, each.default, each.metadata["option"]))
        elif is_dataclass(hint):
            found += fields_of(hint)  # type: ignore[arg-type]
    return found


def _taken_apart(name: str, hint: Any, default: Any, option: Option) -> Field:
    optional = get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)
    if optional:
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    several = get_origin(hint) is tuple and not option.parse and not option.repeated
    if get_origin(hint) is tuple:
        hint = get_args(hint)[0]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    return Field(name, str if choices else hint, choices, several, optional, default, option)


def build(config: type, values: dict[str, Any]) -> Any:
    """Build a config, and those inside it, from the values of all their options."""
    hints = get_type_hints(config)
    given: dict[str, Any] = {}
    for each in fields(config):
        if "option" in each.metadata:
            if each.name in values:
                given[each.name] = values[each.name]
        elif is_dataclass(hints[each.name]):
            given[each.name] = build(hints[each.name], values)  # type: ignore[arg-type]
    return config(**given)


def configured(kind: type[Config], config: Config | None, options: dict[str, Any]) -> Config:
    """Return `config`, or the one that `options` make: how a function takes a config or its fields.

    Raises:
        TypeError: there are both, or an option that the config does not have.
    """
    if config is not None:
        if options:
            raise TypeError(f"give a {kind.__name__} or its fields, not both")
        return config
    if unknown := options.keys() - {each.name for each in fields_of(kind)}:
        raise TypeError(f"{sorted(unknown)[0]!r} is no option of {kind.__name__}")
    return build(kind, options)  # type: ignore[no-any-return]


def check(config: Any) -> None:
    """Check the values of a config's own options; call it from `__post_init__`.

    From Python a path may be given as text, and a repeated option as a single value.

    Raises:
        UserError: names the option, its value and what it may be.
    """
    for each in fields_of(type(config)):
        value: Any = getattr(config, each.name, None)
        if value is None:
            continue
        if each.option.repeated and isinstance(value, str):
            value = (value,)
        if each.kind is Path and isinstance(value, str):
            value = Path(value)
        object.__setattr__(config, each.name, value)
        for one in value if each.several or each.option.repeated else (value,):
            if problem := problem_of(each, one):
                raise UserError(f"{each.flag} {problem}, not {one!r}")


def problem_of(field: Field, value: Any) -> str | None:
    """Say what a single value of an option must be, or None if it is that."""
    option = field.option
    if field.choices and value not in field.choices:
        return f"must be {', '.join(field.choices[:-1])} or {field.choices[-1]}"
    if isinstance(value, float) and not isfinite(value):
        return "must be a finite number"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if option.least is not None and value < option.least:
        return f"must be at least {option.least:g}"
    if option.above is not None and value <= option.above:
        return f"must be above {option.above:g}"
    if option.most is not None and value > option.most:
        return f"must be at most {option.most:g}"
    if option.below is not None and value >= option.below:
        return f"must be below {option.below:g}"
    return None


def command_line(command: str, config: Any) -> str:
    """Return the command that runs a job with these options; defaults are left out."""
    parts, flags = [], []
    for each in fields_of(type(config)):
        value = _value_of(config, each.name)
        if value == each.default or not each.option.given:
            continue
        if each.option.argument:
            parts += [str(one) for one in (value if each.option.repeated else (value,))]
        elif each.kind is bool:
            on, _, off = (each.option.flags[0] if each.option.flags else each.flag).partition("/")
            flags.append(on if value or not off else off)
        else:
            for one in value if each.option.repeated else (value,):
                flags += [each.flag, written(one)]
    return shlex.join(["sd", *command.split(), *parts, *flags])


def _value_of(config: Any, name: str) -> Any:
    if hasattr(config, name):
        return getattr(config, name)
    inner = (getattr(config, each.name) for each in fields(config) if is_dataclass(getattr(config, each.name)))
    return next(_value_of(each, name) for each in inner if name in {one.name for one in fields_of(type(each))})


def written(value: Any) -> str:
    """Write a value as the command line takes it."""
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    return ",".join(map(written, value)) if isinstance(value, tuple) else str(value)


def parse_list(kind: type, text: str) -> tuple[Any, ...]:
    """Read values that commas separate, as in 3e-4,1e-3.

    Raises:
        ValueError: one can't be read, or there is none.
    """
    try:
        found = tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found:
        names: dict[type, str] = {int: "whole numbers such as 1,8", float: "numbers such as 1e-3 or 3e-4,1e-3"}
        raise ValueError(f"{text!r} is no list of {names.get(kind, 'names')}")
    return found


def parse_seconds(text: str) -> float:
    """Read a time, as in 90s, 30m or 2h.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no time such as 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_share(text: str) -> tuple[int, int]:
    """Read one of so many shares, as in 3/64.

    Raises:
        ValueError: it is none.
    """
    try:
        number, count = (int(part) for part in text.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 1 <= number <= count:
        raise ValueError(f"{text!r} is no share such as 1/4 to 4/4")
    return number, count


def parse_names(text: str) -> tuple[str, ...]:
    """Read names that commas separate, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def parse_choices(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a reader of names out of `known`, whatever their case; `all` stands for every one."""
    spelled = {name.lower(): name for name in known}

    def parse(text: str) -> tuple[str, ...]:
        if text == "all":
            return tuple(known)
        names = parse_names(text)
        if unknown := [name for name in names if name.lower() not in spelled]:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return tuple(dict.fromkeys(spelled[name.lower()] for name in names))

    return parse


# Bounds of a seed: scikit-learn's end at 2**32 - 1, and `sd eval --glue` counts on from the first.
SEED: dict[str, Any] = {"least": 0, "most": 2**31 - 1}
