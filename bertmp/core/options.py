"""Options, stated once: a dataclass field carries an option's type, default, help, range and group.

From these fields follow the command line (`bertmp.cli.options`), the TOML file, the saved effective settings,
the check of ranges, what a resumed run may change, and the reference page in `docs/`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, Union, get_args, get_origin, overload

from typing_extensions import dataclass_transform

from bertmp.core.errors import InputError
from bertmp.core.io import plain, write_toml

P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741
R = TypeVar("R")
O_contra = TypeVar("O_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """What is known of an option besides its name, type and default.

    Attributes:
        help: one sentence for `--help` and the reference page.
        group: the panel of `--help` in which it stands; empty for the command's own.
        metavar: what the help shows in place of a value.
        choices: the values that are allowed; empty where any is.
        minimum, maximum: the smallest and the largest value, both allowed.
        above, below: bounds that are themselves not allowed.
        flag: the option's spelling where it does not follow from the field's name, e.g. `--fp16/--no-fp16`.
        formerly: its name in version 0.1; files that use it are read.
        resumable: whether a resumed run may change it.
        on_command_line: False for what only Python callers pass, such as a callback; it is not saved either.
        saved: whether it is one of the effective settings that are saved.
        positional: whether it is an argument of the command rather than an option.
    """

    help: str = ""
    group: str = ""
    metavar: str = ""
    choices: Sequence[str] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    flag: str = ""
    formerly: str = ""
    resumable: bool = False
    on_command_line: bool = True
    saved: bool = True
    positional: bool = False


_INFO = "bertmp.option"


def option(*, default: Any = dataclasses.MISSING, kw_only: bool = True, help: str, **info: Any) -> Any:
    """A field of an Options class that is an option of the command.

    Args:
        default: the option is required where none is given.
        kw_only: False, written out, for an option that Python callers may pass by position.
        help, info: see `OptionInfo`.
    """
    return dataclasses.field(default=default, kw_only=kw_only, metadata={_INFO: OptionInfo(help, **info)})


def argument(*, kw_only: bool, default: Any = dataclasses.MISSING, help: str, **info: Any) -> Any:
    """A field of an Options class that is a positional argument of the command.

    Args:
        kw_only: False, written out where the field is declared: type checkers read it there.
        default, help, info: as for `option`.
    """
    metadata = {_INFO: OptionInfo(help, positional=True, **info)}
    return dataclasses.field(default=default, kw_only=kw_only, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option, argument))
class Options:
    """Base of a command's options: each subclass becomes a frozen dataclass that checks itself.

    Paths may be given as text. Subclasses add rules that concern several options in `check`. The options that
    stand in one panel of `--help` may have a class of their own: `class X(Options, group="Panel")`.
    """

    def __init_subclass__(cls, group: str = "", resumable: bool = False) -> None:
        super().__init_subclass__()
        for field in cls.__dict__.values():
            if isinstance(field, dataclasses.Field) and _INFO in field.metadata:
                info: OptionInfo = field.metadata[_INFO]
                info = dataclasses.replace(
                    info, group=info.group or group, resumable=info.resumable or resumable
                )
                field.metadata = types.MappingProxyType({_INFO: info})
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for declared in declared_options(type(self)):
            value = declared.normal(getattr(self, declared.name))
            object.__setattr__(self, declared.name, value)
            declared.check(value)
        self.check()

    def check(self) -> None:
        """Checks rules between options.

        Raises:
            InputError: options contradict each other.
        """

    def to_json(self, of: type[Options] | None = None) -> dict[str, Any]:
        """Name to value, plain JSON values; paths as text.

        Args:
            of: a base class, to leave out the options that are not declared by it.
        """
        return {
            declared.name: plain(getattr(self, declared.name))
            for declared in declared_options(of or type(self))
            if declared.info.on_command_line and declared.info.saved
        }

    def save(self, path: Path) -> None:
        """Writes the effective settings as TOML, paths absolute; the command's `--config` takes the file."""
        values = self.to_json()
        for declared in declared_options(type(self)):
            value = getattr(self, declared.name)
            if declared.is_path and value is not None and declared.name in values:
                values[declared.name] = str(Path(value).resolve())
        write_toml(path, values)


@dataclasses.dataclass(frozen=True)
class DeclaredOption:
    """One option as it is declared in an Options class.

    Attributes:
        name: the field's name.
        kind: its type, without `| None`.
        optional: whether None is a value.
        repeated: whether it takes several values; `kind` is then the type of one.
        default: `dataclasses.MISSING` where the option is required.
    """

    name: str
    kind: Any
    optional: bool
    repeated: bool
    default: Any
    info: OptionInfo

    @property
    def flag(self) -> str:
        """The option as the user writes it, such as `--learning-rate`; `TASK` for an argument."""
        if self.info.positional:
            return self.info.metavar or self.name.upper()
        return self.info.flag or f"--{self.name.replace('_', '-')}"

    @property
    def is_path(self) -> bool:
        return self.kind is Path and not self.repeated

    def normal(self, value: Any) -> Any:
        """A value as the option holds it: paths as Path, and one value of a repeated option as several."""
        if self.is_path and isinstance(value, (str, os.PathLike)):
            return Path(value)
        if isinstance(value, numbers.Number) and not isinstance(value, (bool, int, float)):  # numpy's
            return int(value) if isinstance(value, numbers.Integral) else float(value)  # type: ignore[arg-type]
        return (value,) if self.repeated and isinstance(value, str) else value

    def check(self, value: Any) -> None:
        """Checks a value against the declared type, choices and range.

        Raises:
            InputError: the value is not allowed.
        """
        if value is None or not self.info.on_command_line:
            return
        for one in value if self.repeated else (value,):
            is_flag = isinstance(one, bool) and self.kind is not bool
            if self.kind in _KINDS and (is_flag or not isinstance(one, _KINDS[self.kind])):
                what = f"{one!r} is not {_NAMES[self.kind]}"
                raise InputError(what, self.flag, f"give {_NAMES[self.kind]}")
            if self.info.choices and one not in self.info.choices:
                known = ", ".join(map(str, self.info.choices))
                raise InputError(f"unknown value '{one}'", self.flag, f"use one of {known}")
            if isinstance(one, (int, float)) and not isinstance(one, bool) and not self._in_range(one):
                todo = f"give a number, {self.range_text or 'a finite one'}"
                raise InputError(f"{self.flag} is {one}", self.flag, todo)

    def _in_range(self, value: float) -> bool:
        info = self.info
        return (
            math.isfinite(value)
            and (info.minimum is None or value >= info.minimum)
            and (info.maximum is None or value <= info.maximum)
            and (info.above is None or value > info.above)
            and (info.below is None or value < info.below)
        )

    @property
    def range_text(self) -> str:
        """The range in words, such as `above 0, at most 1`; empty where there is none."""
        info = self.info
        bounds = {
            "at least": info.minimum, "above": info.above, "at most": info.maximum, "below": info.below,
        }  # fmt: skip
        return ", ".join(f"{word} {_short(bound)}" for word, bound in bounds.items() if bound is not None)


def _short(number: float) -> str:
    power = int(number).bit_length() - 1
    return f"2**{power}" if power > 30 and number == 2**power else f"{number:g}"


_KINDS: dict[Any, Any] = {int: int, float: (int, float), str: (str, Path), bool: bool, Path: (str, Path)}
_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", Path: "a path"}


def declared_options(cls: type[Options]) -> tuple[DeclaredOption, ...]:
    """The options of a class, in the order of their declaration, before those of its bases."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    names = dict.fromkeys(name for one in cls.__mro__ for name in inspect.get_annotations(one))
    return tuple(_declared(cls, fields[name]) for name in names if _INFO in fields[name].metadata)


def _declared(cls: type[Options], field: dataclasses.Field[Any]) -> DeclaredOption:
    info: OptionInfo = field.metadata[_INFO]
    kind: Any = Any
    optional = repeated = False
    if info.on_command_line:  # the types of the others may be imported for type checkers alone
        owner = next(one for one in cls.__mro__ if field.name in inspect.get_annotations(one))
        names = vars(sys.modules[owner.__module__])
        hint = eval(field.type, names) if isinstance(field.type, str) else field.type
        kind, optional, repeated = _read_type(hint)
    if get_origin(kind) is Literal:
        info, kind = dataclasses.replace(info, choices=info.choices or get_args(kind)), str
    return DeclaredOption(field.name, kind, optional, repeated, field.default, info)


def _read_type(hint: Any) -> tuple[Any, bool, bool]:
    """The type of one value, whether None is allowed, and whether there may be several values."""
    optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
    if optional:
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        hint = kinds[0] if len(kinds) == 1 else Any
    repeated = get_origin(hint) in (Sequence, tuple, list)
    return (get_args(hint)[0] if repeated else hint), optional, repeated


def renamed(cls: type[Options]) -> Mapping[str, str]:
    """Names of options in version 0.1, each with its name of today."""
    return {one.info.formerly: one.name for one in declared_options(cls) if one.info.formerly}


class OptionsFunction(Protocol[P, O_contra, R_co]):
    """A function that takes its options as arguments, or all of them as one Options object."""

    @overload
    def __call__(self, *args: P.args, **keywords: P.kwargs) -> R_co: ...

    @overload
    def __call__(self, options: O_contra, /) -> R_co: ...


def keywords_of(options: Callable[P, O]) -> Callable[[Callable[[O], R]], OptionsFunction[P, O, R]]:
    """Lets a function that takes an Options object be called with the options as arguments, too.

    The function gets the signature of the class, for type checkers too, and its docstring a section `Args`.
    """

    def wrap(function: Callable[[O], R]) -> OptionsFunction[P, O, R]:
        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> R:
            if len(args) == 1 and not keywords and isinstance(args[0], options):  # type: ignore[arg-type]
                return function(args[0])
            _refuse_unknown(function.__name__, options, keywords)  # type: ignore[arg-type]
            return function(options(*args, **keywords))

        signature = inspect.signature(options)
        result = inspect.signature(function).return_annotation
        call.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
        call.__doc__ = _with_arguments(function.__doc__ or "", options)
        call.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
        return call

    return wrap


def _refuse_unknown(function: str, options: type[Options], keywords: Mapping[str, Any]) -> None:
    """Raises a TypeError that names the function, and the option's name of today where it was renamed."""
    known, former = {field.name for field in dataclasses.fields(options)}, renamed(options)  # type: ignore[arg-type]
    for name in keywords:
        if name not in known:
            hint = f"; it is now '{former[name]}'" if name in former else ""
            raise TypeError(f"{function}() has no argument '{name}'{hint}")


class NoOptions(Options):
    """The options of a command that has none."""


def _with_arguments(text: str, options: Any) -> str:
    head, mark, rest = text.partition("\n    Returns:")
    if not mark:
        head, mark, rest = text.partition("\n    Raises:")
    listed = "".join(f"        {one.name}: {one.info.help}\n" for one in declared_options(options))
    return f"{head.rstrip()}\n\n    Args:\n{listed}{mark}{rest}"
