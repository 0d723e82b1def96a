"""`bertmp bench`: measures a served text model under load."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile

from bertmp.core.errors import MissingComponent
from bertmp.core.hardware import machine
from bertmp.core.io import write_text, writing_to
from bertmp.core.options import keywords_of
from bertmp.core.progress import Notice
from bertmp.environment.perf_analyzer import PerfAnalyzer, find_perf_analyzer
from bertmp.serve.client import Client
from bertmp.serve.connection import parse_address
from bertmp.serve.load_test import perf_analyzer, python_clients
from bertmp.serve.load_test.figures import BenchResult, LoadPoint, load_point
from bertmp.serve.load_test.load import Load, Recording, TextRequests
from bertmp.serve.load_test.options import BenchOptions
from bertmp.serve.load_test.page import render
from bertmp.serve.served_tasks import TASKS


@keywords_of(BenchOptions)
def bench(options: BenchOptions) -> BenchResult:
    """Measures a served text model under load.

    Raises:
        InputError: a data file that cannot be read, an unknown model or a dead server, or a report that
            cannot be written.
        MissingComponent: perf_analyzer was asked for and is not installed.
    """
    if options.report is not None:
        _require_writable(options.report)
    with Client(options.url, options.protocol) as client:
        requests = _requests(client, options)
        # An unknown model or a dead server is an error here, not a failed request of the test.
        client.infer(options.name, python_clients.feed(requests, 0), requests.outputs)
        address = client.address
    run = _Run(options, requests, address)
    levels = tuple(run.measure(load) for load in options.loads)
    generator = " and ".join(dict.fromkeys(run.generators))
    result = BenchResult(options.name, options.protocol, address, levels, generator, tuple(run.notes))
    if options.report is not None:
        write_text(options.report / "report.json", json.dumps(result.to_json(), indent=2) + "\n")
        write_text(options.report / "report.html", render(result, str(machine())))
    return result


def _require_writable(folder: Path) -> None:
    """Raises an InputError now rather than when everything has been measured."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def _requests(client: Client, options: BenchOptions) -> TextRequests:
    """What the model is asked, as its configuration says it takes it.

    Raises:
        InputError: an unknown model, a dead server, or not a text model; see `BenchOptions.rows` for others.
    """
    served = client.describe(options.name)
    names = ("TEXT", "TEXT_PAIR") if served.pairs else ("TEXT",)
    outputs = (*TASKS[served.task].answers, "TOKENS")
    return TextRequests(options.name, options.rows(served.pairs), names, outputs)


class _Run:
    """One load after the other, by the generator that can measure it.

    Attributes:
        notes: what is worth knowing of how it was measured.
        generators: those that were used, one per load.
    """

    def __init__(self, options: BenchOptions, requests: TextRequests, address: str) -> None:
        self.notes: list[str] = []
        self.generators: list[str] = []
        self._options, self._requests, self._address = options, requests, address
        self._tool = self._choose_tool()
        if self._tool is not None and len(requests.rows) > perf_analyzer.MOST_ROWS:
            self._note(f"the first {perf_analyzer.MOST_ROWS:,} of {len(requests.rows):,} inputs are asked")

    def measure(self, load: Load) -> LoadPoint:
        """Puts one load on the server."""
        self._options.progress(str(load))
        point = load_point(load, self._record(load))
        if point.rate_missed:
            answered = f"{point.requests_per_second:.1f} requests/s were answered"
            self._note(f"{point.name} were too many: {answered}, and the others queued up")
        return point

    def _record(self, load: Load) -> Recording:
        options = self._options
        if self._tool is not None:
            target = perf_analyzer.text_target(self._address, options.protocol, self._requests)
            try:
                recording = perf_analyzer.measure(self._tool, target, load)
                self.generators.append(f"perf_analyzer {self._tool.version}")
                return recording
            except perf_analyzer.RequestFailed as error:
                self._python_note(f"perf_analyzer, which does not count failures, ended ({error})")
        self.generators.append(python_clients.NAME)
        return python_clients.measure(options.url, options.protocol, load, self._requests)

    def _choose_tool(self) -> PerfAnalyzer | None:
        if self._options.generator == "python":
            return None
        tool = find_perf_analyzer()
        _, encrypted = parse_address(self._options.url, self._options.protocol)
        if tool is not None and not encrypted:
            return tool
        reason = "the connection is encrypted" if encrypted else "perf_analyzer is not installed"
        todo = "" if encrypted else "'bertmp setup triton' fetches it"
        if self._options.generator == "perf_analyzer":
            raise MissingComponent(reason, "--generator", todo or "use --generator python")
        self._python_note(f"{reason}{f'; {todo}' if todo else ''}")
        return None

    def _python_note(self, reason: str) -> None:
        where = f"{machine().cores} cores, which the server may share"
        self._note(f"measured with Python clients on {where}: {reason}")

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._options.progress(Notice(text))
