"""tritonclient's gRPC and HTTP clients behind one interface; errors are one line that names the address."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from typing_extensions import Self

from bertmp.core.errors import InputError
from bertmp.serve.serving_options import Protocol

PORTS: Mapping[Protocol, int] = {"grpc": 8001, "http": 8000}
SCHEMES = {"grpc": ("", "grpc", "grpcs"), "http": ("", "http", "https")}

REQUEST_TIMEOUT = 120.0
"""Seconds that the server may take to answer an inference request."""
LOAD_TIMEOUT = 600.0
"""Seconds that loading a model may take; a TensorRT engine of gigabytes takes a while."""

T = TypeVar("T")


def parse_address(url: str | None, protocol: Protocol) -> tuple[str, bool]:
    """`host:port` and whether it is encrypted, of an address with or without a scheme and a port.

    Raises:
        InputError: an unknown protocol, a scheme of another protocol, or not an address at all.
    """
    if protocol not in PORTS:
        raise InputError(f"unknown protocol '{protocol}'", "", f"use one of {', '.join(PORTS)}")
    address = (url or "127.0.0.1").strip().rstrip("/")
    scheme, _, host = address.rpartition("://")
    if scheme not in SCHEMES[protocol]:
        raise InputError(
            f"not an address for {protocol}", address, f"begin it with {protocol}:// or without a scheme"
        )
    if not host or "/" in host:
        raise InputError("not a server's address", address, "write HOST:PORT")
    has_port = ":" in host.rpartition("]")[2]  # an IPv6 host stands in brackets
    return host if has_port else f"{host}:{PORTS[protocol]}", scheme.endswith("s")


class TritonClient:
    """A connection to one server; usable from one thread. Close it, or use it in a `with` statement.

    Args:
        url: `HOST:PORT`, with or without a scheme; the loopback interface and the protocol's usual port
            where left out.
        protocol: `grpc` or `http`.

    Raises:
        InputError: not an address of this protocol.
    """

    def __init__(self, url: str | None, protocol: Protocol = "grpc") -> None:
        self.protocol, self._url = protocol, url
        self.address, encrypted = parse_address(url, protocol)
        self._library = import_module(f"tritonclient.{protocol}")
        self._grpc = protocol == "grpc"
        timeouts = {} if self._grpc else {"connection_timeout": 10.0, "network_timeout": LOAD_TIMEOUT}
        self._client = self._library.InferenceServerClient(self.address, ssl=encrypted, **timeouts)
        self._as_json = {"as_json": True} if self._grpc else {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def is_live(self) -> bool:
        """Whether a server answers at the address."""
        try:
            return bool(self._client.is_server_live())
        except Exception:  # each library has its own exceptions for a server that does not answer
            return False

    def require_live(self) -> None:
        """Raises an InputError where no server answers."""
        if not self.is_live():
            what = f"no Triton server answers over {self.protocol}"
            todo = (
                "start one with 'bertmp serve', or check the port: 8001 is gRPC's and 8000 HTTP's by default"
            )
            raise InputError(what, self.address, todo)

    def config(self, model: str) -> dict[str, Any]:
        """The model's configuration in Triton's JSON form.

        Raises:
            InputError: an unknown model or a dead server.
        """
        found = self._ask(model, lambda: self._client.get_model_config(model, **self._as_json))
        return dict(found["config"] if self._grpc else found)

    def server_version(self) -> str:
        """The server's own version, e.g. `2.62.0`."""
        found = self._ask("", lambda: self._client.get_server_metadata(**self._as_json))
        return str(found.get("version", ""))

    def index(self) -> list[dict[str, str]]:
        """Every model and version that the server knows: `name`, `version`, `state`, `reason`."""
        found = self._ask("", lambda: self._client.get_model_repository_index(**self._as_json))
        return list(found.get("models", []) if self._grpc else found)

    def load(self, model: str) -> None:
        """Makes the server read the model's folder again.

        Raises:
            InputError: the model does not load, with Triton's reason.
        """
        timeout = {"client_timeout": LOAD_TIMEOUT} if self._grpc else {}
        self._ask(model, lambda: self._client.load_model(model, **timeout))

    def unload(self, model: str) -> None:
        """Makes the server unload the model."""
        self._ask(model, lambda: self._client.unload_model(model))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        version: str = "",
        classes: int = 0,
    ) -> tuple[dict[str, np.ndarray], int]:
        """Sends one request.

        Args:
            inputs: name → array `[batch, …]`; texts as bytes objects.
            outputs: the outputs wanted.
            version: the model's version; empty for the newest.
            classes: above 0, outputs come as Triton's `value:index:label` strings, this many.

        Returns:
            The outputs by name, and the version that answered.

        Raises:
            InputError: an unknown model, a refused request or a dead server.
        """
        from tritonclient.utils import np_to_triton_dtype

        sent = []
        for name, array in inputs.items():
            sent.append(self._library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            sent[-1].set_data_from_numpy(array)
        wanted = [self._library.InferRequestedOutput(name, class_count=classes) for name in outputs]
        timeout = {"client_timeout": REQUEST_TIMEOUT} if self._grpc else {}
        result = self._ask(
            model, lambda: self._client.infer(model, sent, model_version=version, outputs=wanted, **timeout)
        )
        response = result.get_response()
        answered = response.model_version if self._grpc else response["model_version"]
        return {name: result.as_numpy(name) for name in outputs}, int(answered)

    def _ask(self, model: str, call: Callable[[], T]) -> T:
        from tritonclient.utils import InferenceServerException

        try:
            return call()
        except InferenceServerException as error:
            raise self._error(model, str(error.message()), str(error.status() or "")) from error
        except (OSError, ValueError, EOFError, HTTPException) as error:  # the HTTP client's own
            self.require_live()
            what = f"the server closed the connection: {error}"
            raise InputError(what, self.address, "look at the server's log") from error

    def _error(self, model: str, message: str, status: str) -> InputError:
        """The server's error; raises another where the server is dead."""
        self.require_live()
        if "unknown model" in message or "is not found" in message:
            what, todo = f"the server has no model '{model}'", "see 'bertmp models', or deploy it"
            return InputError(what, self.address, todo)
        if "DEADLINE_EXCEEDED" in status or "Deadline Exceeded" in message:
            return InputError("the server does not answer in time", self.address, "look at the server's log")
        where = f"{model} at {self.address}" if model else self.address
        return InputError(message, where, "fix the request")
