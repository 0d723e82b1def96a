"""The complete pipeline on TREC: train, export, build an engine, check parity, deploy, serve, infer.

Every stage is the command that a user would type, printed before it runs. Writes `build/quickstart/`:
`run/`, `bundle/`, `report/` and `summary.json`. Nothing is left running.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUESTION = "What is the name of the river that flows through the city of Prague ?"
"""A question that is in neither the training nor the test data."""
NAME = "trec"
BERTMP = [sys.executable, "-m", "bertmp"]


class StageFailed(Exception):
    """A command of the pipeline did not succeed."""

    def __init__(self, stage: str, code: int) -> None:
        super().__init__(f"the stage '{stage}' failed with exit code {code}")
        self.code = code


class Quickstart:
    """Runs the stages one after another and measures the time of each."""

    def __init__(self, out: Path, repository: Path) -> None:
        self.out, self.repository = out, repository
        self.seconds: dict[str, float] = {}

    def stage(self, name: str, *arguments: str, describe: Callable[[Any], str] = lambda result: "") -> Any:
        """Runs one command; its progress goes to the terminal.

        Args:
            name: the stage's name in the summary.
            arguments: the command line after `bertmp`.
            describe: turns the command's JSON result into the text that is printed.

        Returns:
            The command's JSON result.

        Raises:
            StageFailed: the command failed.
        """
        show("bertmp", *arguments)
        started = time.monotonic()
        done = subprocess.run([*BERTMP, *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=False)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 2)
        if done.returncode:
            print(done.stdout, end="")
            raise StageFailed(name, done.returncode)
        result = json.loads(done.stdout)
        if line := describe(result):
            print(line, flush=True)
        return result

    @contextmanager
    def server(self) -> Iterator[dict[str, Any]]:
        """A Triton server on free ports while the block runs; yields its addresses."""
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        arguments = ["serve", "--repository", str(self.repository), *ports]
        show("bertmp", *arguments)
        started = time.monotonic()
        process = subprocess.Popen([*BERTMP, *arguments, "--json"], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise StageFailed("serve", process.wait())
            self.seconds["serve"] = round(time.monotonic() - started, 2)
            yield json.loads(line)
        finally:
            process.terminate()
            process.wait()

    def run(self, data: Path, model: Path) -> dict[str, Any]:
        """Runs the pipeline; returns the summary."""
        run, bundle, report = (str(self.out / name) for name in ("run", "bundle", "report"))
        train_file, test_file = str(data / "train.tsv"), str(data / "test.tsv")
        training = ("train", "classification", "--data", train_file, "--eval-data", test_file)
        start = ("--model", str(model), "--learning-rate", "1e-4", "--out", run, "--overwrite")
        trained = self.stage("train", *training, *start, describe=describe_train)
        self.stage("export", "export", trained["checkpoint"], "--out", bundle, describe=describe_export)
        self.stage("build-engine", "build-engine", bundle, describe=describe_engine)
        parity = ("parity", bundle, "--data", test_file, "--report", report)
        self.stage("parity", *parity, describe=describe_parity)
        target = ("--name", NAME, "--repository", str(self.repository))
        self.stage("deploy", "deploy", bundle, *target, describe=describe_deploy)
        with self.server() as addresses:
            labels = {protocol: self.ask(protocol, addresses[protocol]) for protocol in ("grpc", "http")}
            # Again, now with the served model as the last stage.
            served = ("--server", addresses["grpc"], "--model", NAME)
            self.stage("parity", *parity, *served, describe=describe_parity)
        return {
            "seconds": self.seconds,
            "accuracy": trained["eval"]["eval_accuracy"],
            "question": QUESTION,
            "labels": labels,
            "report": str(self.out / "report" / "report.html"),
        }

    def ask(self, protocol: str, url: str) -> str:
        """The served model's label for the question."""
        where = ("--protocol", protocol, "--url", url)
        answers = self.stage("infer", "infer", NAME, QUESTION, *where, describe=describe_answer)
        return str(answers[0]["label"])


def describe_train(result: Any) -> str:
    evaluation, speed = result["eval"], result["examples_per_second"]
    return f"{result['checkpoint']}: accuracy {evaluation['eval_accuracy']:.4f}, {speed:.0f} examples/s"


def describe_export(result: Any) -> str:
    nodes, ratio = result["nodes"], result["size_ratio"]
    return f"{nodes['fp32']} nodes in FP32, {nodes['fp16']} in FP16; the file is {ratio:.3f} of FP32"


def describe_engine(result: Any) -> str:
    kinds = ("MATRIX_MULTIPLY", "NORMALIZATION", "SOFTMAX")
    layers = [f"{n} {kind} in {type}" for kind in kinds for type, n in result["summary"][kind].items()]
    verified = "verified against the plan" if result["verified"] else "not verified"
    return f"{result['builder']} {result['builder_version']}: {', '.join(layers)}; {verified}"


def describe_parity(result: Any) -> str:
    lines = []
    for stage in result["stages"]:
        metrics = stage["measures"]
        what = stage["reason"] and f"{stage['status']}: {stage['reason']}"
        if metrics:
            what = f"max logit error {metrics['max_error']:.1e}, {metrics['flips']} label flips"
        lines.append(f"{stage['name']:18} {what}")
    return "\n".join([*lines, result["verdict"]])


def describe_deploy(result: Any) -> str:
    on_cpu = f"on a CPU in {result['precision'].upper()}"
    return f"{result['name']} version {result['version']}, parity {result['parity']}, {on_cpu}"


def describe_answer(result: Any) -> str:
    return f"{result[0]['label']} ({result[0]['probability']:.3f})"


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
