"""The proxy of `examples/proxy`, nginx itself, in front of a real server."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertmp.serve.client import Client
from tests.serve.conftest import Served

EXAMPLE = Path(__file__).parents[2] / "examples" / "proxy" / "nginx.conf"
NGINX, OPENSSL = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin"), shutil.which("openssl")

pytestmark = pytest.mark.skipif(not (NGINX and OPENSSL), reason="nginx and openssl are not installed here")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Proxy:
    """Requests through the proxy, with its certificate as the only one that is trusted."""

    def __init__(self, port: int, folder: Path) -> None:
        self.url, self.folder = f"https://localhost:{port}", folder
        self.context = ssl.create_default_context(cafile=str(folder / "server.crt"))

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        request = urllib.request.Request(f"{self.url}{path}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.context) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@pytest.fixture(scope="module")
def proxy(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    text = EXAMPLE.read_text().replace("127.0.0.1:8000", served.url("http"))
    text = text.replace("listen 8443", f"listen 127.0.0.1:{port}")
    (folder / "nginx.conf").write_text(f"daemon off;\n{text}")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    files = ("-keyout", folder / "server.key", "-out", folder / "server.crt")
    command = [str(OPENSSL), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    process = subprocess.Popen([str(NGINX), "-p", str(folder), "-c", "nginx.conf"])
    try:
        found, deadline = Proxy(port, folder), time.monotonic() + 30
        while True:
            try:
                assert found.ask("/v2/health/live")[0] == 200
                break
            except OSError:
                assert time.monotonic() < deadline, "nginx does not answer"
                assert process.poll() is None, "nginx has ended"
        yield found
    finally:
        process.terminate()
        process.wait(30)


def body(**inputs: object) -> bytes:
    return json.dumps({"inputs": [inputs]}).encode()


def test_a_text_is_answered_through_the_proxy(proxy: Proxy, served: Served) -> None:
    asked = body(name="TEXT", datatype="BYTES", shape=[1, 1], data=["Who wrote Hamlet ?"])
    status, reply = proxy.ask("/v2/models/trec/infer", asked)
    assert status == 200
    with Client(served.url("http"), "http") as client:
        (label,) = client.classify("trec", ["Who wrote Hamlet ?"]).labels
    outputs = {one["name"]: one["data"] for one in json.loads(reply)["outputs"]}
    assert outputs["LABEL"] == [label]


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/trec_encoder/infer",
        "/v2/models/trec_encoder/versions/1/infer",
        "/v2/repository/models/trec/unload",
        "/v2/repository/index",
        "/v2/systemsharedmemory/region/x/register",
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/models/trec/../trec_encoder/infer",
        "/",
    ],
)
def test_what_clients_do_not_need_is_refused(proxy: Proxy, path: str) -> None:
    assert proxy.ask(path, b"{}")[0] == 403


def test_the_request_that_ends_old_servers_does_not_reach_them(proxy: Proxy, served: Served) -> None:
    row = {"datatype": "INT64", "shape": [1, 10_000_000_000], "data": [1]}
    names = ("input_ids", "attention_mask", "token_type_ids")
    asked = json.dumps({"inputs": [{"name": name, **row} for name in names]}).encode()
    assert proxy.ask("/v2/models/trec_encoder/infer", asked)[0] == 403
    with Client(served.url("http"), "http") as client:
        assert client.is_live()


def test_a_request_that_is_too_large_is_refused(proxy: Proxy) -> None:
    assert proxy.ask("/v2/models/trec/infer", b" " * (5 << 20))[0] == 413


def test_health_is_answered_and_not_written_to(proxy: Proxy) -> None:
    assert proxy.ask("/v2/health/ready")[0] == 200
    assert proxy.ask("/v2/models/trec/ready")[0] == 200
    assert proxy.ask("/v2/health/ready", b"{}")[0] == 403
