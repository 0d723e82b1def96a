"""Bad input over the wire: refused as the caller's mistake, in words that help, and the server goes on."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from bertmp.core.errors import InputError, RequestRefused
from bertmp.serve.client import Client
from bertmp.serve.faults import error_of_reply
from bertmp.serve.model_config import MAX_BATCH
from bertmp.serve.serving_options import Protocol
from tests.serve.bundles import POSITIONS
from tests.serve.conftest import Served

PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(autouse=True)
def unharmed(served: Served) -> Iterator[None]:
    """After each bad request the server answers a good one over both protocols, in the same processes."""
    import psutil

    def processes() -> set[int]:
        return {one.pid for one in psutil.Process(served.running.pid).children(recursive=True)}

    before = processes()
    yield
    for protocol in PROTOCOLS:
        with Client(served.url(protocol), protocol) as client:
            assert client.ask("trec", ["Who wrote Hamlet ?"])[0].version == 1
    assert processes() == before


def rows(*values: bytes) -> np.ndarray:
    return np.array(values, dtype=object).reshape(-1, 1)


BAD_TENSORS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "missing": ({}, r"missing required input\(s\) \['TEXT'\]"),
    "extra": ({"TEXT": rows(b"a"), "MORE": rows(b"b")}, r"got 2 inputs .* and takes no others"),
    "rank": ({"TEXT": np.array([b"a"], dtype=object)}, r"Expected \[-1,1\], got \[1\] \(trec at"),
    "columns": (
        {"TEXT": np.array([[b"a", b"b"]], dtype=object)},
        r"Expected \[-1,1\], got \[1,2\] \(trec at",
    ),
    "type": ({"TEXT": np.ones((1, 1), dtype=np.float32)}, "data-type is 'FP32', but .* expects 'BYTES'"),
    "another_name": ({"WORDS": rows(b"a")}, "WORDS"),
    "not_utf8": ({"TEXT": rows(b"ab\xff")}, "the text is not UTF-8: byte 0xff at position 2"),
    "empty_text": ({"TEXT": rows(b" \t\n")}, "the text is empty"),
    "empty_second_text": ({"TEXT": rows(b"a", b"")}, "text 2 of 2 is empty"),
    "empty_batch": ({"TEXT": np.empty((0, 1), dtype=object)}, "got 0"),
    "large_batch": ({"TEXT": rows(*[b"a"] * (MAX_BATCH + 1))}, f"batch-size must be <= {MAX_BATCH}"),
    "large_text": ({"TEXT": rows(b"a" * 1_000_001)}, "1000001 bytes, the most is 1000000"),
}


def assert_refused(
    url: str, protocol: Protocol, model: str, inputs: dict[str, np.ndarray], output: str, reason: str
) -> None:
    """As the caller's mistake: by the status that any client gets, and by the error that ours makes of it."""
    with Client(url, protocol) as client, pytest.raises(RequestRefused, match=reason) as refused:
        client.infer(model, inputs, (output,))
    assert refused.value.exit_code == 2
    assert "request id" not in str(refused.value)
    reply = refused.value.__cause__
    assert isinstance(reply, InferenceServerException)
    assert str(reply.status()) in ("StatusCode.INVALID_ARGUMENT", "400")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensor_is_refused_as_the_callers(served: Served, case: str, protocol: Protocol) -> None:
    inputs, reason = BAD_TENSORS[case]
    assert_refused(served.url(protocol), protocol, "trec", inputs, "LABEL", reason)


def ids(value: int = 1, length: int = 4) -> np.ndarray:
    return np.full((1, length), value, dtype=np.int64)


BAD_IDS: dict[str, tuple[tuple[np.ndarray, ...], str]] = {
    "id_too_large": ((ids(30522), ids(), ids(0)), "input_ids has the value 30522, outside 0 to 30521"),
    "negative_id": ((ids(-1), ids(), ids(0)), "input_ids has the value -1"),
    "mask": ((ids(), ids(2), ids(0)), "attention_mask has the value 2, outside 0 to 1"),
    "token_type": ((ids(), ids(), ids(2)), "token_type_ids has the value 2"),
    "too_long": ((ids(length=POSITIONS + 1),) * 3, "too long: 65 tokens, the most is 64"),
    "empty": ((ids(length=0),) * 3, "is empty"),
    "shapes": ((ids(), ids(length=5), ids(0)), "differ in shape"),
    "large_batch": ((np.ones((MAX_BATCH + 1, 4), dtype=np.int64),) * 3, f"batch-size must be <= {MAX_BATCH}"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", BAD_IDS)
def test_bad_ids_are_refused_as_the_callers(served: Served, case: str, protocol: Protocol) -> None:
    arrays, reason = BAD_IDS[case]
    inputs = dict(zip(("input_ids", "attention_mask", "token_type_ids"), arrays, strict=True))
    assert_refused(served.url(protocol), protocol, "trec_encoder", inputs, "logits", reason)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unknown_model_version_or_output_is_named(served: Served, protocol: Protocol) -> None:
    with Client(served.url(protocol), protocol) as client:
        with pytest.raises(InputError, match="the server has no model 'nope'"):
            client.ask("nope", ["a"])
        with pytest.raises(InputError, match="the server has no version 9 of 'trec'"):
            client.ask("trec", ["a"], version="9")
        with pytest.raises(RequestRefused, match="unexpected inference output 'NOPE'"):
            client.infer("trec", {"TEXT": rows(b"a")}, ("NOPE",))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_text_with_nul_bytes_is_read_like_any_other(served: Served, protocol: Protocol) -> None:
    with Client(served.url(protocol), protocol) as client:
        found = client.classify("trec", ["who\0 is\0 it", "who is it"])
    assert found.probabilities[0].tolist() == pytest.approx(found.probabilities[1].tolist(), abs=1e-6)
    assert found.tokens[0] == found.tokens[1]


def truncated() -> bytes:
    request = service_pb2.ModelInferRequest(model_name="trec")
    tensor = request.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(b"Who wrote Hamlet ?")
    return bytes(request.SerializeToString())[:-4]


@pytest.mark.parametrize("message", [truncated(), b"\xff" * 40, b""], ids=["truncated", "noise", "empty"])
def test_damaged_protobuf_is_an_error_and_the_callers_where_it_cannot_be_read(
    served: Served, message: bytes
) -> None:
    with grpc.insecure_channel(served.running.grpc) as channel:
        call = channel.unary_unary(INFER, request_serializer=lambda one: one)
        with pytest.raises(grpc.RpcError) as failed:
            call(message, timeout=20)
    reply: Any = failed.value
    error = error_of_reply(reply.details(), str(reply.code()), "trec", served.running.grpc)
    assert error.exit_code == 2, error


BODY = json.dumps(
    {"inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["Who wrote Hamlet ?"]}]}
).encode()
DATA = b'"data": ["Who wrote Hamlet ?"]'
HEAD = "POST /v2/models/trec/infer HTTP/1.1\r\nHost: localhost\r\n"


def send(served: Served, length: object, body: bytes = BODY, more: str = "", close: bool = False) -> bytes:
    """What comes back to a request that declares this length; empty where the server hangs up."""
    host, _, port = served.running.http.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"{HEAD}{more}Content-Length: {length}\r\n\r\n".encode() + body)
        if close:
            connection.shutdown(socket.SHUT_WR)
        try:
            return connection.recv(1 << 16)
        except ConnectionResetError:
            return b""


def status_and_error(reply: bytes) -> tuple[str, str]:
    head, _, body = reply.partition(b"\r\n\r\n")
    return head.split()[1].decode(), json.loads(body)["error"]


def test_content_length_below_the_body_is_the_callers(served: Served) -> None:
    status, reason = status_and_error(send(served, len(BODY) - 10))
    error = error_of_reply(reason, status, "trec", served.running.http)
    assert isinstance(error, RequestRefused), (status, reason)
    assert "failed to parse the request JSON" in error.what


@pytest.mark.parametrize("length", [len(BODY) + 100, -5, "many", 10**18])
def test_content_length_that_no_body_fits_ends_the_connection(served: Served, length: object) -> None:
    assert not send(served, length, close=True).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("change", "header", "reason"),
    [
        (lambda body: body, "Inference-Header-Content-Length: 99999\r\n", "header size should be in range"),
        (
            lambda body: body.replace(DATA, b'"parameters": {"binary_data_size": 99}'),
            "Inference-Header-Content-Length: {length}\r\n",
            "unexpected size for input 'TEXT', expecting 99 additional bytes",
        ),
    ],
    ids=["header", "tensor"],
)
def test_lying_length_of_a_binary_tensor_is_a_bad_request(
    served: Served, change: Callable[[bytes], bytes], header: str, reason: str
) -> None:
    body = change(BODY)
    reply = send(served, len(body), body, header.format(length=len(body)))
    assert status_and_error(reply)[0] == "400"
    assert reason in status_and_error(reply)[1]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"inputs": 1}', b'{"inputs": [{"name": "TEXT"}]}'])
def test_body_that_is_no_request_is_the_callers(served: Served, body: bytes) -> None:
    connection = http.client.HTTPConnection(served.running.http, timeout=20)
    connection.request("POST", "/v2/models/trec/infer", body)
    reply = connection.getresponse()
    reason = json.loads(reply.read())["error"]
    connection.close()
    error = error_of_reply(reason, str(reply.status), "trec", served.running.http)
    assert error.exit_code == 2, (reply.status, reason)
