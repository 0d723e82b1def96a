"""What every command shares: light imports, one-line errors, exit codes, --json, --config, --debug."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "tritonclient", "rich.progress", "tokenizers", "matplotlib")
COMMANDS = (
    *("doctor", "setup", "download", "train", "export", "convert", "build-engine", "parity"),
    *("deploy", "rollback", "models", "serve", "infer", "bench"),
)

PROBE = """
import sys, typer
from bertmp.cli.command import Outcome, command, run_app
from bertmp.core.errors import BertmpError, GateFailed, InputError, MissingComponent, TrainingStopped

app = typer.Typer(name="probe", pretty_exceptions_enable=False)
ERRORS = {
    "gate": GateFailed("too far\\nfrom it", "stage onnx", "look"),
    "input": InputError("bad", "file", "mend it"),
    "stopped": TrainingStopped("overflow", "step 3", "lower the rate"), "missing": MissingComponent("no x"),
    "os": FileNotFoundError(2, "No such file or directory", "/nowhere"), "memory": MemoryError(),
    "interrupt": KeyboardInterrupt(), "pipe": BrokenPipeError(), "bug": ZeroDivisionError("a bug"),
}

def early(value: str) -> str:
    if value == "interrupt":
        raise KeyboardInterrupt
    return value

@command(app, "probe", example="probe --raise input")
def probe(
    kind: str = typer.Option("", "--raise"), times: int = 1, early: str = typer.Option("", callback=early),
    code: int = 0,
) -> Outcome:
    print("working", file=sys.stderr)
    if kind:
        raise ERRORS[kind]
    return Outcome({"times": times, "text": "Grüße"}, f"times {times}", code)

@app.callback()
def main() -> None: ...

run_app(app)
"""


def probe(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command that does what it is told, on the base of all commands."""
    return subprocess.run(
        [sys.executable, "-c", PROBE, "probe", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd or Path(__file__).parents[3],
        check=False,
    )


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, bertmp.cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"
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
    assert json.loads(done.stdout) == {"times": 1, "text": "Grüße"}
    assert done.stdout.count("\n") == 1


def test_a_command_may_end_with_a_code() -> None:
    done = probe("--code", "1")
    assert (done.returncode, done.stdout) == (1, "times 1\n")


@pytest.mark.parametrize(
    ("kind", "code", "line"),
    [
        ("gate", 1, "error: too far from it (stage onnx): look"),
        ("input", 2, "error: bad (file): mend it"),
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
    assert done.stderr.splitlines()[-1] == "error: bad (file): mend it"


def test_a_bug_is_not_dressed_up_as_an_error_of_the_user() -> None:
    done = probe("--raise", "bug")
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug" in done.stderr


def test_an_interrupt_while_the_command_line_is_read() -> None:
    done = probe("--early", "interrupt")
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
