"""Options of a job: a dataclass field has its type, default, help and check, for Python and the command line alike."""

import operator
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sentence_distill.data.errors import UserError

Config = TypeVar("Config")
# Bounds of a seed: scikit-learn accepts up to 2**32 - 1, and `sd eval --glue` counts up from the first seed.
SEED: dict[str, Any] = {"least": 0, "most": 2**31 - 1}
_BOUNDS = (
    ("least", operator.lt, "at least"),
    ("above", operator.le, "above"),
    ("most", operator.gt, "at most"),
    ("below", operator.ge, "below"),
)


def option(default: Any, help: str, **settings: Any) -> Any:
    """Declare a field of a config with its default, a help text that stands alone, and other settings of `Field`."""
    return field(default=default, metadata={"option": {"help": help, **settings}})


@dataclass(frozen=True, kw_only=True)
class Field:
    """An option: a field of a config, with the parts of its type."""

    name: str
    kind: type
    """Type of the value, or of each value in a tuple: bool, int, float, str or Path."""
    choices: tuple[str, ...]
    """Values of a Literal; empty for other types."""
    several: bool
    """True if the value is a tuple, written with commas on the command line."""
    optional: bool
    """True if the value may be None."""
    default: Any
    help: str
    shown: str | None = None
    """Text that the help shows as the default instead of the value, for a default that depends on something."""
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    """Names on the command line, if they differ from the field's: `--no-text`, `--split/--no-split`."""
    aliases: tuple[str, ...] = ()
    """Older names, which still work but are not shown in the help."""
    parse: Callable[[str], Any] | None = None
    """Parser of the value, which raises a ValueError that describes the mistake."""
    least: float | None = None
    """Inclusive lower bound; `above` is the exclusive one."""
    above: float | None = None
    most: float | None = None
    """Inclusive upper bound; `below` is the exclusive one."""
    below: float | None = None
    repeated: bool = False
    """True if the option may be repeated, with one value each time."""
    argument: bool = False
    """True for a positional argument."""
    given: bool = True
    """True if `command_line` writes the option."""

    @property
    def flag(self) -> str:
        """First name on the command line."""
        return self.flags[0].partition("/")[0] if self.flags else f"--{self.name.replace('_', '-')}"

    def problem_of(self, value: Any) -> str | None:
        """Describe the constraint that a single value violates; None if it is valid."""
        if self.choices and value not in self.choices:
            return f"must be {', '.join(self.choices[:-1])} or {self.choices[-1]}"
        if isinstance(value, float) and not isfinite(value):
            return "must be a finite number"
        if isinstance(value, int | float) and not isinstance(value, bool):
            for name, is_wrong, words in _BOUNDS:
                if (bound := getattr(self, name)) is not None and is_wrong(value, bound):
                    return f"must be {words} {bound:g}"
        return None


def fields_of(config: type) -> list[Field]:
    """Return the options of a config; those of nested configs stand where the config is declared."""
    hints = get_type_hints(config)
    found = []
    for each in fields(config):
        hint = hints[each.name]
        if is_dataclass(hint):
            found += fields_of(hint)  # type: ignore[arg-type]
        if "option" not in each.metadata:
            continue
        settings = each.metadata["option"]
        optional = get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)
        if optional:
            (hint,) = (one for one in get_args(hint) if one is not NoneType)
        several = get_origin(hint) is tuple and not settings.get("parse") and not settings.get("repeated")
        if get_origin(hint) is tuple:
            hint = get_args(hint)[0]
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        found.append(
            Field(
                name=each.name,
                kind=str if choices else hint,
                choices=choices,
                several=several,
                optional=optional,
                default=each.default,
                **settings,
            )
        )
    return found


def build(config: type, values: dict[str, Any]) -> Any:
    """Build a config and its nested configs from the values of all options."""
    hints = get_type_hints(config)
    inner = {name: build(hint, values) for name, hint in hints.items() if is_dataclass(hint)}  # type: ignore[arg-type]
    return config(**inner, **{name: value for name, value in values.items() if name in hints})


def configured(kind: type[Config], config: Config | None, options: dict[str, Any]) -> Config:
    """Return `config`, or build it from `options`, for functions that accept a config or its fields."""
    if config is not None:
        if options:
            raise TypeError(f"give a {kind.__name__} or its fields, not both")
        return config
    if unknown := options.keys() - {each.name for each in fields_of(kind)}:
        raise TypeError(f"{min(unknown)!r} is not an option of {kind.__name__}")
    return build(kind, options)  # type: ignore[no-any-return]


def check(config: Any) -> None:
    """Check the values of a config's own options; call it from `__post_init__`.

    From Python a path may be given as text, and a repeated option as a single value.
    """
    for each in fields_of(type(config)):
        value: Any = getattr(config, each.name, None)
        if value is None:
            continue
        if each.repeated and isinstance(value, str):
            value = (value,)
        if each.kind is Path and isinstance(value, str):
            value = Path(value)
        object.__setattr__(config, each.name, value)
        for one in value if each.several or each.repeated else (value,):
            if problem := each.problem_of(one):
                raise UserError(f"{each.flag} {problem}, not {one!r}")


def command_line(command: str, *configs: Any) -> str:
    """Return the command that runs a job with the options of `configs`, defaults left out.

    A string among the configs is written as it is: the flag that the options of the next config belong to.
    """
    parts: list[str] = []
    flags: list[str] = []
    for config in configs:
        if isinstance(config, str):
            flags.append(config)
            continue
        values = dict(_values(config))
        for each in fields_of(type(config)):
            value = values[each.name]
            if value == each.default or not each.given:
                continue
            every = value if each.repeated else (value,)
            if each.argument:
                parts += map(str, every)
            elif each.kind is bool:
                on, _, off = (each.flags[0] if each.flags else each.flag).partition("/")
                flags.append(on if value or not off else off)
            else:
                flags += [part for one in every for part in (each.flag, written(one))]
    return shlex.join(["sd", *command.split(), *parts, *flags])


def _values(config: Any) -> Iterator[tuple[str, Any]]:
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            yield from _values(value)
        yield each.name, value


def written(value: Any) -> str:
    """Format a value as the command line accepts it."""
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    return ",".join(map(written, value)) if isinstance(value, tuple) else str(value)


# Parsers. They raise a ValueError that describes the mistake.


def parse_list(kind: type, text: str) -> tuple[Any, ...]:
    """Parse comma-separated values, as in 3e-4,1e-3."""
    try:
        found = tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found:
        names: dict[type, str] = {int: "whole numbers such as 1,8", float: "numbers such as 1e-3 or 3e-4,1e-3"}
        raise ValueError(f"{text!r} is not a list of {names.get(kind, 'names')}")
    return found


def parse_seconds(text: str) -> float:
    """Parse a duration, as in 90s, 30m or 2h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is not a time such as 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_share(text: str) -> tuple[int, int]:
    """Parse a share and the number of shares, as in 3/64."""
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"{text!r} is not a share such as 1/4 to 4/4")
    return number, count


def parse_names(text: str) -> tuple[str, ...]:
    """Parse comma-separated names; duplicates are dropped."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def parse_choices(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of `known` names, in upper or lower case; `all` stands for all of them."""
    spelled = {name.lower(): name for name in known}

    def parse(text: str) -> tuple[str, ...]:
        if text == "all":
            return tuple(known)
        names = parse_names(text)
        if unknown := [name for name in names if name.lower() not in spelled]:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return tuple(dict.fromkeys(spelled[name.lower()] for name in names))

    return parse
