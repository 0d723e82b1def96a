"""The whole pipeline on TREC: train, export, convert, build, check, deploy, serve, ask.

Every stage is the command that a user would type, printed before it runs. Writes `build/quickstart/`:
`run/`, `bundle/`, `report/` and `summary.json`. Nothing is left running.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUESTION = "What is the name of the river that flows through the city of Prague ?"
"""In neither half of TREC."""
NAME = "trec"
BERTMP = [sys.executable, "-m", "bertmp"]


class StageFailed(Exception):
    """A command of the pipeline did not succeed."""

    def __init__(self, stage: str, code: int) -> None:
        super().__init__(f"the stage '{stage}' failed with exit code {code}")
        self.code = code


class Quickstart:
    """Runs the stages one after another and keeps the time of each."""

    def __init__(self, out: Path, repository: Path) -> None:
        self.out, self.repository = out, repository
        self.seconds: dict[str, float] = {}

    def stage(self, name: str, *arguments: str) -> Any:
        """Runs one command with `--json`; its progress goes to the terminal, its result comes back."""
        show("bertmp", *arguments)
        started = time.monotonic()
        done = subprocess.run([*BERTMP, *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=False)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 2)
        if done.returncode:
            print(done.stdout, end="")
            raise StageFailed(name, done.returncode)
        return json.loads(done.stdout)

    @contextmanager
    def server(self) -> Iterator[dict[str, Any]]:
        """A Triton server on free ports for the length of the block; yields its addresses."""
        arguments = [
            "serve",
            "--repository",
            str(self.repository),
            "--http-port",
            "0",
            "--grpc-port",
            "0",
            "--metrics-port",
            "0",
            "--json",
        ]
        show("bertmp", *arguments)
        started = time.monotonic()
        process = subprocess.Popen([*BERTMP, *arguments], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise StageFailed("serve", process.wait())
            self.seconds["serve"] = round(time.monotonic() - started, 2)
            yield json.loads(line)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()

    def run(self, data: Path, model: Path) -> dict[str, Any]:
        """The pipeline; returns the summary that is written at its end."""
        run, bundle, report = (str(self.out / name) for name in ("run", "bundle", "report"))
        train_file, test_file = str(data / "train.tsv"), str(data / "test.tsv")
        trained = self.stage(
            "train",
            "train",
            "classification",
            "--data",
            train_file,
            "--eval-data",
            test_file,
            "--model",
            str(model),
            "--out",
            run,
            "--learning-rate",
            "1e-4",
        )
        self.stage("export", "export", trained["checkpoint"], "--out", bundle)
        self.stage("build-engine", "build-engine", bundle)
        self.stage("parity", "parity", bundle, "--data", test_file, "--report", report)
        self.stage("deploy", "deploy", bundle, "--name", NAME, "--repository", str(self.repository))
        labels = {}
        with self.server() as addresses:
            for protocol in ("grpc", "http"):
                answer = self.stage(
                    "infer", "infer", NAME, QUESTION, "--protocol", protocol, "--url", addresses[protocol]
                )[0]
                labels[protocol] = answer["label"]
            # Once more, now with the served model as the last stage of the chain.
            self.stage(
                "parity",
                "parity",
                bundle,
                "--data",
                test_file,
                "--report",
                report,
                "--server",
                addresses["grpc"],
                "--model",
                NAME,
            )
        return {
            "seconds": self.seconds,
            "accuracy": trained["eval"]["eval_accuracy"],
            "question": QUESTION,
            "labels": labels,
            "report": str(self.out / "report" / "report.html"),
        }


def show(*command: str) -> None:
    """Prints a command as it would be typed."""
    print(f"\n$ {shlex.join(command)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/quickstart"))
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    quickstart = Quickstart(arguments.out, arguments.repository)
    try:
        quickstart.stage("setup", "setup", "triton")
        folders = quickstart.stage("download", "download", "minilm", "trec")
        summary = quickstart.run(Path(folders["trec"]), Path(folders["minilm"]))
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(
        "\nseconds  " + "  ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary["seconds"].items())
    )
    print(f"accuracy {summary['accuracy']:.4f}\n\n{QUESTION}")
    for protocol, label in summary["labels"].items():
        print(f"  {protocol:5}{label}")
    print(f"\nreport   {summary['report']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
