"""The clients: which protocol an address speaks, streams of texts, and asyncio."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertmp import infer
from bertmp.core.errors import BertmpError, InputError, RequestRefused
from bertmp.data.readers import read_examples
from bertmp.serve import AsyncClient, Client
from bertmp.serve.connection import possible_connections
from bertmp.serve.task_answers import Answer, RefusedText
from bertmp.serve.text_requests import text_inputs
from tests.conftest import RunBertmp
from tests.serve.bundles import answer_in_process
from tests.serve.conftest import Served

SCHEMES = ("grpc://", "http://", "bare grpc", "bare http")


@pytest.fixture(scope="module")
def texts(trec: Path) -> list[str]:
    return list(read_examples(trec / "test.tsv").texts[:150])


def address(served: Served, kind: str) -> str:
    url = served.url("grpc" if "grpc" in kind else "http")
    return url if kind.startswith("bare") else f"{kind}{url}"


def labels(answers: list[Answer]) -> list[str]:
    return [answer.to_json()["label"] for answer in answers]


@pytest.mark.parametrize("kind", SCHEMES)
def test_address_decides_the_protocol_and_both_clients_answer_alike(
    served: Served, texts: list[str], kind: str
) -> None:
    async def ask() -> list[Answer]:
        async with AsyncClient(address(served, kind), concurrency=3) as client:
            return await client.ask("trec", texts)

    with Client(address(served, kind)) as client:
        assert client.protocol == ("grpc" if "grpc" in kind else "http")
        found = client.ask("trec", texts)
    assert labels(found) == answer_in_process(served.bundle, texts)[0]
    for one, other in zip(found, asyncio.run(ask()), strict=True):
        first, second = one.to_json(), other.to_json()
        assert first.pop("scores") == pytest.approx(second.pop("scores"), abs=1e-5)
        assert first.pop("probability") == pytest.approx(second.pop("probability"), abs=1e-5)
        assert first == second


def test_empty_second_text_is_sent_for_the_server_to_refuse() -> None:
    assert text_inputs(["a"], [""])["TEXT_PAIR"].tolist() == [[b""]]
    assert set(text_inputs(["a"])) == {"TEXT"}


@pytest.mark.parametrize(
    ("url", "protocol", "expected"),
    [
        (None, None, ["grpc 127.0.0.1:8001"]),
        (None, "http", ["http 127.0.0.1:8000"]),
        ("host", None, ["grpc host:8001", "http host:8000"]),
        ("host:1", None, ["grpc host:1", "http host:1"]),
        ("grpcs://host", None, ["grpc host:8001 tls"]),
        ("https://host:443", None, ["http host:443 tls"]),
    ],
)
def test_address_may_mean(url: str | None, protocol: str | None, expected: list[str]) -> None:
    found = possible_connections(url, protocol)  # type: ignore[arg-type]
    told = [f"{one.protocol} {one.address}{' tls' if one.encrypted else ''}" for one in found]
    assert told == expected


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://h", {"protocol": "grpc"}, "not an address for grpc"),
        ("ftp://h", {}, "unknown scheme 'ftp'"),
        ("grpc://h", {"tls_ca": __file__}, "not a PEM file"),
        ("grpcs://h", {"tls_ca": "missing.pem"}, "no such file"),
        ("grpcs://h", {"tls_key": __file__}, "a certificate without its key"),
    ],
)
def test_address_that_contradicts_its_options_is_refused(
    url: str, options: dict[str, str], message: str
) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InputError, match=message):
            kind(url, **options)  # type: ignore[arg-type]


def test_nobody_at_the_address_is_said_by_both_clients() -> None:
    async def ask() -> None:
        async with AsyncClient("127.0.0.1:9") as client:
            await client.ask("trec", ["a"])

    for call in (lambda: Client("127.0.0.1:9"), lambda: asyncio.run(ask())):
        with pytest.raises(
            InputError, match=r"no Triton server answers over grpc or http \(127\.0\.0\.1:9\)"
        ):
            call()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_stream_keeps_the_order_and_reads_no_further_than_it_must(
    served: Served, texts: list[str], protocol: str
) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield texts[(taken - 1) % len(texts)]

    with Client(f"{protocol}://{served.url(protocol)}") as client:
        replies = client.stream("trec", endless(), concurrency=3)
        found = [next(replies) for _ in range(400)]
        replies.close()
    asked = [texts[number % len(texts)] for number in range(400)]
    assert [one.text for one in found] == asked
    assert labels(found) == answer_in_process(served.bundle, asked)[0]  # type: ignore[arg-type]
    assert taken < 400 + 32 * 12


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_async_stream_keeps_the_order_within_its_limit(
    served: Served, texts: list[str], protocol: str
) -> None:
    async def ask() -> list[str]:
        async with AsyncClient(f"{protocol}://{served.url(protocol)}", concurrency=8) as client:
            return labels([answer async for answer in client.stream("trec", texts)])

    assert asyncio.run(ask()) == answer_in_process(served.bundle, texts)[0]


def test_refused_text_is_named_or_stands_in_its_place(served: Served) -> None:
    asked = [*map(str, range(40)), "a" * 1_000_001, "last"]
    with Client(served.running.grpc) as client:
        replies = client.stream("trec", asked)
        assert [next(replies).text for _ in range(40)] == asked[:40]
        with pytest.raises(RequestRefused, match=r"too large.* \(text 41\)"):
            next(replies)
        found = list(client.stream("trec", asked, skip_refused=True))
    assert [one.text for one in found] == asked
    assert [at for at, one in enumerate(found) if isinstance(one, RefusedText)] == [40]


def test_async_stream_names_a_refused_text_or_has_it_in_its_place(served: Served) -> None:
    asked = [*map(str, range(20)), "", "last"]

    async def ask() -> None:
        async with AsyncClient(served.running.grpc, concurrency=2) as client:
            replies = client.stream("trec", asked)
            assert [(await anext(replies)).text for _ in range(20)] == asked[:20]
            with pytest.raises(RequestRefused, match=r"empty.* \(text 21\)"):
                await anext(replies)
            found = [reply async for reply in client.stream("trec", asked, skip_refused=True)]
        assert [one.text for one in found] == asked
        assert [at for at, one in enumerate(found) if isinstance(one, RefusedText)] == [20]

    asyncio.run(ask())


def test_async_client_errors_are_the_clients(served: Served) -> None:
    async def ask(*texts: str, model: str = "trec") -> BertmpError:
        async with AsyncClient(served.running.http) as client:
            with pytest.raises(BertmpError) as failed:
                await client.ask(model, texts)
            assert (await client.ask("trec", ["still here"]))[0].version == 1
        return failed.value

    assert isinstance(asyncio.run(ask(*["a"] * 40, "")), RequestRefused)
    assert "no model 'nope'" in str(asyncio.run(ask("a", model="nope")))


def test_infer_command_finds_the_protocol_and_shows_all_scores(served: Served, run_bertmp: RunBertmp) -> None:
    for protocol in ("grpc", "http"):
        done = run_bertmp("infer", "trec", "Who wrote Hamlet ?", "--url", served.url(protocol), "--scores")
        assert done.returncode == 0, done.stderr
        label, probability, *scores = done.stdout.rstrip("\n").split("\t")
        assert len(scores) == 6
        assert scores[0] == f"{label} {probability}"


def bertmp(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bertmp", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_infer_command_answers_each_line_of_standard_input_as_it_comes(served: Served) -> None:
    with bertmp("infer", "trec", "-", "--url", served.running.grpc) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = []
        for text in ("Where is Rome ?", "Who wrote Hamlet ?"):
            process.stdin.write(f"{text}\n\n".encode())
            process.stdin.flush()
            answers.append(process.stdout.readline().decode().split("\t")[0])  # before the next is asked
        process.stdin.write(b"no line break")
        process.stdin.close()
        answers.append(process.stdout.readline().decode().split("\t")[0])
        assert process.wait(60) == 0
    asked = ["Where is Rome ?", "Who wrote Hamlet ?", "no line break"]
    assert answers == answer_in_process(served.bundle, asked)[0]


def test_infer_command_names_the_line_of_a_refused_text(
    served: Served, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("fine\n\n" + "a" * 1_000_001 + "\nalso fine\n")
    options = ("--data", file, "--url", served.running.http)
    done = run_bertmp("infer", "trec", *options)
    assert done.returncode == 2
    [error] = done.stderr.splitlines()
    assert f"({file}, line 3): change it, or have it left out with --skip-refused" in error
    done = run_bertmp("infer", "trec", *options, "--skip-refused", "--json")
    assert done.returncode == 0, done.stderr
    first, refused, last = json.loads(done.stdout)
    assert (first["text"], last["text"]) == ("fine", "also fine")
    assert "too large" in refused["error"]
    assert f"{file}, line 3 was refused" in done.stderr


@pytest.mark.slow
def test_infer_command_streams_a_large_file_in_bounded_memory(served: Served, tmp_path: Path) -> None:
    """100,000 texts take little more memory than 1,000, and every line has its answer."""

    def peak(lines: int) -> int:
        file = tmp_path / f"{lines}.txt"
        with file.open("w") as stream:
            stream.writelines(f"what is {number} ? {'word ' * 20}\n" for number in range(lines))
        out = tmp_path / f"{lines}.json"
        command = [sys.executable, "-m", "bertmp", "infer", "trec", "--data", str(file), "--json"]
        with out.open("wb") as stream:
            process = subprocess.Popen([*command, "--url", f"grpc://{served.running.grpc}"], stdout=stream)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        found = json.loads(out.read_text())
        assert [one["text"].split()[2] for one in found] == [str(number) for number in range(lines)]
        return int(usage.ru_maxrss) * 1024

    small, large = peak(1_000), peak(100_000)
    assert large - small < 30e6, (small, large)


def test_infer_function_reads_a_dash_as_a_text(served: Served) -> None:
    assert infer("trec", "-", url=served.running.grpc)[0].text == "-"


PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"


@pytest.mark.parametrize("number", [0, 1])
def test_python_of_the_page_is_answered(served: Served, number: int) -> None:
    code = PAGE.read_text(encoding="utf-8").split("```python\n")[number + 1].partition("```")[0]
    for protocol, shown in (("grpc", "127.0.0.1:8001"), ("http", "127.0.0.1:8000")):
        code = code.replace(shown, served.url(protocol))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("What is 999 ? ")


def test_infer_command_is_interrupted_while_it_waits_for_a_line(served: Served) -> None:
    with bertmp("infer", "trec", "-", "--url", served.running.grpc) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Who wrote Hamlet ?\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
