"""Options classes: defaults, ranges and rules, and what follows from their declaration."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from bertmp.core.errors import InputError
from bertmp.core.io import read_toml
from bertmp.core.options import Options, argument, declared_options, keywords_of, option, renamed
from bertmp.export.export_options import ConvertOptions

if TYPE_CHECKING:
    from nowhere import Absent  # type: ignore[import-not-found]


class Base(Options):
    seed: int = option(default=0, minimum=0, help="The seed.")


class Sample(Base):
    source: Path = argument(kw_only=False, metavar="FILE", help="What is read.")
    rate: float = option(kw_only=False, default=0.5, above=0, maximum=1, formerly="speed", help="The rate.")
    kind: Literal["fast", "exact"] | None = option(default=None, help="The kind.")
    names: Sequence[str] = option(default=(), help="The names.")
    resume: bool = option(default=False, saved=False, help="Whether to resume.")
    callback: Absent = option(default=print, on_command_line=False, help="Called.")

    def check(self) -> None:
        if self.resume and self.seed:
            raise InputError("--resume takes no --seed", "--seed", "leave it out")


@keywords_of(Sample)
def described(options: Sample) -> str:
    """Describes a sample.

    Returns:
        The description.
    """
    return f"{options.source} {options.rate:g} {options.seed}"


def test_function_takes_arguments_or_an_options_object() -> None:
    assert described("a.txt", 1, seed=3) == "a.txt 1 3"  # type: ignore[arg-type]
    assert described(Sample(Path("a.txt"), seed=2)) == "a.txt 0.5 2"
    with pytest.raises(TypeError):
        described(Path("a.txt"), sed=3)  # type: ignore[call-overload]


def test_function_has_the_signature_and_the_help_of_its_options() -> None:
    parameters = inspect.signature(described).parameters
    assert list(parameters) == ["source", "rate", "seed", "kind", "names", "resume", "callback"]
    assert parameters["seed"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["rate"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert inspect.signature(described).return_annotation == "str"
    documentation = inspect.getdoc(described) or ""
    assert "    rate: The rate." in documentation
    assert documentation.index("Args:") < documentation.index("Returns:")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "--rate is 0 (--rate): give a number, above 0, at most 1"),
        ({"rate": 1.5}, "--rate is 1.5 (--rate): give a number, above 0, at most 1"),
        ({"rate": float("inf")}, "--rate is inf (--rate): give a number, above 0, at most 1"),
        ({"seed": -1}, "--seed is -1 (--seed): give a number, at least 0"),
        ({"kind": "slow"}, "unknown value 'slow' (--kind): use one of fast, exact"),
        ({"seed": 1, "resume": True}, "--resume takes no --seed (--seed): leave it out"),
    ],
)
def test_value_outside_its_declaration_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Sample(Path("a.txt"), **options)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_declaration_gives_type_and_spelling_of_each_option() -> None:
    declared = {one.name: one for one in declared_options(Sample)}
    assert list(declared) == ["source", "rate", "kind", "names", "resume", "callback", "seed"]
    assert (declared["source"].flag, declared["source"].kind) == ("FILE", Path)
    assert (declared["kind"].optional, tuple(declared["kind"].info.choices)) == (True, ("fast", "exact"))
    assert (declared["names"].repeated, declared["names"].kind) == (True, str)
    assert renamed(Sample) == {"speed": "rate"}


def test_saved_settings_are_absolute_and_leave_out_what_is_not_saved(tmp_path: Path) -> None:
    sample = Sample(Path("a.txt"), names=("x", "y"))
    sample.save(tmp_path / "config.toml")
    assert read_toml(tmp_path / "config.toml") == {
        "source": str(Path("a.txt").resolve()), "rate": 0.5, "names": ["x", "y"], "seed": 0,
    }  # fmt: skip
    assert sample.to_json(of=Base) == {"seed": 0}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": "3"}, "'3' is not an integer (--seed): give an integer"),
        ({"seed": True}, "True is not an integer (--seed): give an integer"),
        ({"rate": "fast"}, "'fast' is not a number (--rate): give a number"),
    ],
)
def test_value_of_another_type_names_its_option(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError) as caught:
        Sample(Path("a.txt"), **options)  # type: ignore[arg-type]
    assert str(caught.value) == says


def test_unknown_keyword_names_the_function_and_the_name_of_today() -> None:
    import bertmp

    with pytest.raises(TypeError, match=r"^train\(\) has no argument 'accumulate'; it is now 'grad"):
        bertmp.train("classification", "a", "b", "c", accumulate=2)  # type: ignore[call-arg, arg-type]
    with pytest.raises(TypeError, match=r"^convert\(\) has no argument 'stepps'$"):
        bertmp.convert("a", "b", stepps=2)  # type: ignore[call-arg, arg-type]


def test_one_text_for_a_repeated_option_is_one_value() -> None:
    assert ConvertOptions("a", "b", keep_fp32="bert/*").keep_fp32 == ("bert/*",)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    options = Sample(Path("a.txt"), seed=np.int64(3), rate=np.float32(0.25))  # type: ignore[arg-type]
    assert (type(options.seed), options.seed) == (int, 3)
    assert (type(options.rate), options.rate) == (float, 0.25)


def test_input_roles_where_nothing_is_measured_are_refused() -> None:
    plan = Path("plan.json")
    with pytest.raises(InputError, match="inputs are named for examples, and with a plan nothing is"):
        ConvertOptions("a", "b", inputs=["ids=x"], plan=plan)  # type: ignore[arg-type]
    ConvertOptions("a", "b", inputs=["ids=x"], plan=plan, calibration=Path("c.txt"))  # type: ignore[arg-type]
    ConvertOptions("a", "b", inputs=["ids=x"])  # type: ignore[arg-type]
