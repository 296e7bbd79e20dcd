"""Options of a job: a dataclass field says its type, default, help and check, once for Python and the command line."""

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
# Bounds of a seed: scikit-learn's end at 2**32 - 1, and `sd eval --glue` counts on from the first.
SEED: dict[str, Any] = {"least": 0, "most": 2**31 - 1}
_BOUNDS = (
    ("least", operator.lt, "at least"),
    ("above", operator.le, "above"),
    ("most", operator.gt, "at most"),
    ("below", operator.ge, "below"),
)


def option(default: Any, help: str, **settings: Any) -> Any:
    """Declare a field of a config with its default, a help that stands alone, and the other settings of `Field`."""
    return field(default=default, metadata={"option": {"help": help, **settings}})


@dataclass(frozen=True, kw_only=True)
class Field:
    """An option: a field of a config with its type taken apart."""

    name: str
    kind: type
    """Type of the value, or of each one in a tuple: bool, int, float, str or Path."""
    choices: tuple[str, ...]
    """The values of a Literal; otherwise empty."""
    several: bool
    """The value is a tuple, separated by commas on the command line."""
    optional: bool
    """None is a value."""
    default: Any
    help: str
    shown: str | None = None
    """What the help shows as default instead of the value, if it depends on something."""
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    """Names on the command line, if not that of the field: `--no-text`, `--split/--no-split`."""
    aliases: tuple[str, ...] = ()
    """Older names, which work and which no help shows."""
    parse: Callable[[str], Any] | None = None
    """Reads the value from text; raises ValueError with what is wrong."""
    least: float | None = None
    """Least value, included unless `above`."""
    above: float | None = None
    most: float | None = None
    """Largest value, included unless `below`."""
    below: float | None = None
    repeated: bool = False
    """The option may be repeated, a value each time."""
    argument: bool = False
    """It is a positional argument."""
    given: bool = True
    """It belongs to the command that `command_line` writes."""

    @property
    def flag(self) -> str:
        """The first name on the command line."""
        return self.flags[0].partition("/")[0] if self.flags else f"--{self.name.replace('_', '-')}"

    def problem_of(self, value: Any) -> str | None:
        """Say what a single value must be, or None if it is that."""
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
    """Return the options of a config, those of configs inside it in their place."""
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
    """Build a config, and those inside it, from the values of all their options."""
    hints = get_type_hints(config)
    inner = {name: build(hint, values) for name, hint in hints.items() if is_dataclass(hint)}  # type: ignore[arg-type]
    return config(**inner, **{name: value for name, value in values.items() if name in hints})


def configured(kind: type[Config], config: Config | None, options: dict[str, Any]) -> Config:
    """Return `config`, or the one that `options` make: how a function takes a config or its fields."""
    if config is not None:
        if options:
            raise TypeError(f"give a {kind.__name__} or its fields, not both")
        return config
    if unknown := options.keys() - {each.name for each in fields_of(kind)}:
        raise TypeError(f"{min(unknown)!r} is no option of {kind.__name__}")
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
    """Return the command that runs a job with the options of configs; defaults are left out.

    A text among the configs stands as it is: the flag with which the options of the next go.
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
    """Write a value as the command line takes it."""
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    return ",".join(map(written, value)) if isinstance(value, tuple) else str(value)


# Readers of text; they raise ValueError with what is wrong.


def parse_list(kind: type, text: str) -> tuple[Any, ...]:
    """Read values that commas separate, as in 3e-4,1e-3."""
    try:
        found = tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found:
        names: dict[type, str] = {int: "whole numbers such as 1,8", float: "numbers such as 1e-3 or 3e-4,1e-3"}
        raise ValueError(f"{text!r} is no list of {names.get(kind, 'names')}")
    return found


def parse_seconds(text: str) -> float:
    """Read a time, as in 90s, 30m or 2h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no time such as 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_share(text: str) -> tuple[int, int]:
    """Read one of so many shares, as in 3/64."""
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
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
