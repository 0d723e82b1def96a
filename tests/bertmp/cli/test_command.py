"""What every command shares: light imports, one-line errors, exit codes, --json, --config, --debug."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = (
    *("torch", "onnx", "onnxruntime", "numpy", "tritonclient", "tokenizers", "pyarrow", "rich.progress"),
    *("pydantic", "filelock", "platformdirs", "tomli_w"),
)
COMMANDS = (
    *("doctor", "setup", "download", "prepare", "train", "export", "convert", "explain", "build-engine"),
    *("parity", "compare", "verify", "predict"),
    *("deploy", "rollback", "prune", "models", "serve", "infer", "bench"),
)

PROBE = """
import sys, typer
from collections.abc import Sequence
from typing import Literal
from bertmp.cli.command import CommandResult, add_command, run_app
from bertmp.core.options import Options, option
from bertmp.core.errors import BertmpError, GateFailed, InputError, MissingComponent, TrainingStopped

app = typer.Typer(name="probe", pretty_exceptions_enable=False)
ERRORS = {
    "gate": GateFailed("too far\\nfrom it", "stage onnx", "look"),
    "input": InputError("bad", "file", "fix it"),
    "stopped": TrainingStopped("overflow", "step 3", "lower the rate"), "missing": MissingComponent("no x"),
    "os": FileNotFoundError(2, "No such file or directory", "/nowhere"), "memory": MemoryError(),
    "interrupt": KeyboardInterrupt(), "pipe": BrokenPipeError(), "bug": ZeroDivisionError("a bug"),
}

def early(value: str) -> str:
    if value == "interrupt":
        raise KeyboardInterrupt
    return value

class ProbeOptions(Options):
    kind: str = option(default="", flag="--raise", help="The error.")
    times: int = option(default=1, minimum=1, formerly="number", help="How often.")
    size: float | None = option(default=None, above=0, group="Sizes", help="The [size].")
    mode: Literal["fast", "exact"] = option(default="fast", help="The mode")
    names: Sequence[str] = option(default=(), help="The names.")
    quick: bool = option(default=True, help="Whether to hurry.")
    plain: bool = option(default=False, help="Whether to be plain.")
    code: int = option(default=0, help="The exit code.")

    def check(self) -> None:
        if self.plain and not self.quick:
            raise InputError("--plain needs --quick", "--plain", "leave one out")

def probe(options: ProbeOptions) -> CommandResult:
    print("working", file=sys.stderr)
    if options.kind:
        raise ERRORS[options.kind]
    return CommandResult({**options.to_json(), "text": "Grüße"}, f"times {options.times}", options.code)

add_command(app, "probe", probe, example="probe --raise input")

@app.callback()
def main(early: str = typer.Option("", callback=early)) -> None: ...

run_app(app)
"""


def probe(*arguments: str, early: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command that does what it is told, registered as every command is."""
    return subprocess.run(
        [sys.executable, "-c", PROBE, "--early", early, "probe", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd or Path(__file__).parents[3],
        check=False,
    )


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.main import get_command; from bertmp.cli.app import app; get_command(app); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_lists_every_command(run_bertmp) -> None:  # type: ignore[no-untyped-def]
    done = run_bertmp("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f" {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, run_bertmp) -> None:  # type: ignore[no-untyped-def]
    done = run_bertmp(name, "--help")
    assert done.returncode == 0
    assert f"Example: bertmp {name}" in done.stdout
    for option in ("--json", "--config", "--debug"):
        assert option in done.stdout


def test_no_command_shows_the_help(run_bertmp) -> None:  # type: ignore[no-untyped-def]
    done = run_bertmp()
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr
    assert "error" not in done.stderr


def test_version(run_bertmp) -> None:  # type: ignore[no-untyped-def]
    from bertmp import __version__

    assert run_bertmp("--version").stdout == f"bertmp {__version__}\n"


def test_results_and_logs_go_their_own_ways() -> None:
    done = probe("--times", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "times 3\n", "working\n")


def test_json_is_one_object_and_nothing_else() -> None:
    done = probe("--json")
    found = json.loads(done.stdout)
    assert (found["times"], found["text"]) == (1, "Grüße")
    assert done.stdout.count("\n") == 1


def parsed(*arguments: str) -> dict[str, Any]:
    """The options that the command received."""
    done = probe("--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_options_not_given_have_their_declared_defaults() -> None:
    found = parsed()
    assert found == {
        "kind": "",
        "times": 1,
        "size": None,
        "mode": "fast",
        "names": [],
        "quick": True,
        "plain": False,
        "code": 0,
        "text": "Grüße",
    }


def test_options_given_arrive_with_their_types() -> None:
    found = parsed("--size", "2.5", "--mode", "exact", "--names", "a", "--names", "b", "--no-quick")
    assert (found["size"], found["mode"], found["names"], found["quick"]) == (2.5, "exact", ["a", "b"], False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--times", "0"], "error: --times is 0 (--times): give a number, at least 1"),
        (["--size", "0"], "error: --size is 0.0 (--size): give a number, above 0"),
        (["--size", "nan"], "error: --size is nan (--size): give a number, above 0"),
        (["--mode", "slow"], "error: unknown value 'slow' (--mode): use one of fast, exact"),
        (["--plain", "--no-quick"], "error: --plain needs --quick (--plain): leave one out"),
        (["--number", "2"], "error: --number is now --times (-c probe): use the new name"),
    ],
)
def test_refused_option_is_one_line(arguments: list[str], line: str) -> None:
    done = probe(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{line}\n"


def test_help_shows_choices_ranges_and_groups() -> None:
    shown = " ".join(probe("--help").stdout.replace("│", " ").split())
    assert "fast|exact" in shown
    assert "How often (at least 1)" in shown
    assert "The [size] (above 0)" in shown
    assert "The names (may be repeated)" in shown
    assert "─ Sizes ─" in shown
    assert "--no-quick" in shown
    assert "--no-plain" not in shown


def test_config_with_a_former_name_is_read_and_tells_the_new_one(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('number = 7\nnames = "one"\n')
    done = probe("--json", "--config", str(settings))
    found = json.loads(done.stdout)
    assert (found["times"], found["names"]) == (7, ["one"])
    assert done.stderr.splitlines() == [f"{settings}: 'number' is now 'times'", "working"]


def test_a_command_may_end_with_a_code() -> None:
    done = probe("--code", "1")
    assert (done.returncode, done.stdout) == (1, "times 1\n")


@pytest.mark.parametrize(
    ("kind", "code", "line"),
    [
        ("gate", 1, "error: too far from it (stage onnx): look"),
        ("input", 2, "error: bad (file): fix it"),
        ("stopped", 3, "error: overflow (step 3): lower the rate"),
        ("missing", 4, "error: no x"),
        ("os", 2, "error: No such file or directory (/nowhere): check the path and the disk"),
        ("memory", 2, "error: not enough memory: use a smaller batch, graph or model"),
        ("interrupt", 130, "interrupted"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(kind: str, code: int, line: str) -> None:
    done = probe("--raise", kind)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines() == ["working", line]


def test_debug_shows_the_traceback_and_keeps_the_exit_code() -> None:
    done = probe("--raise", "input", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: bad (file): fix it"


def test_a_bug_is_not_dressed_up_as_an_error_of_the_user() -> None:
    done = probe("--raise", "bug")
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug" in done.stderr


def test_an_interrupt_while_the_command_line_is_read() -> None:
    done = probe(early="interrupt")
    assert done.returncode == 130
    assert done.stderr.strip() in ("", "interrupted")  # some versions of Typer end silently


def test_a_reader_that_leaves_is_no_error() -> None:
    done = probe("--raise", "pipe")
    assert (done.returncode, done.stderr) == (0, "working\n")


@pytest.mark.parametrize(
    "arguments", [["--times", "three"], ["--nope"], ["surplus"], ["--times"], ["--config", "none.toml"]]
)
def test_usage_errors_are_one_line(arguments: list[str]) -> None:
    done = probe(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")


def test_options_from_a_file_and_the_command_line_wins(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("times = 5\n")
    assert probe("--config", str(settings)).stdout == "times 5\n"
    assert probe("--config", str(settings), "--times", "2").stdout == "times 2\n"
    assert probe("--times", "2", "--config", str(settings)).stdout == "times 2\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"time = 5\n", "unknown setting 'time'"),
        (b"times = \n", "not a TOML file"),
        (b"\xff\n", "not a TOML file"),
        (b'times = "many"\n', "--times"),
    ],
)
def test_broken_settings_are_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_bytes(content)
    done = probe("--config", str(settings))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert says in line
    assert str(settings) in line or "--times" in line
