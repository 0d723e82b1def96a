"""tritonclient's gRPC and HTTP clients behind one interface; errors are one line that names the address."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from typing_extensions import Self

from bertmp.serve.connection import Connection, parse_address
from bertmp.serve.faults import (
    CONNECTION_ERRORS,
    error_of,
    no_server,
    server_is_gone,
    server_may_be_gone,
)
from bertmp.serve.retry import Attempts
from bertmp.serve.serving_options import Protocol
from bertmp.serve.wire import queue_timeout, request_of, response_of

LOAD_TIMEOUT = 600.0
"""Seconds that loading a model may take; a TensorRT engine of gigabytes takes a while."""
LIVE_TIMEOUT = 5.0
"""Seconds that a server may take to say that it is alive."""

T = TypeVar("T")


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
        address, encrypted = parse_address(url, protocol)
        self._connect(Connection(address, protocol, encrypted))

    def _connect(self, connection: Connection) -> None:
        self.connection = connection
        self.protocol, self.address = connection.protocol, connection.address
        self._library = import_module(f"tritonclient.{self.protocol}")
        self._grpc = self.protocol == "grpc"
        self._as_json = {"as_json": True} if self._grpc else {}
        self._client = self._open()
        self._has_answered = False
        # A key, where the server lists and loads models for its holder alone: see ControlClient.
        self._headers: Mapping[str, str] | None = None

    def _open(self) -> Any:
        encrypted, tls = self.connection.encrypted, self.connection.tls
        new = self._library.InferenceServerClient
        if self._grpc:
            return new(self.address, ssl=encrypted, **tls.grpc_arguments())
        timeouts = {"connection_timeout": LIVE_TIMEOUT, "network_timeout": LOAD_TIMEOUT}
        return new(self.address, ssl=encrypted, ssl_options=tls.http_options(), **timeouts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def is_live(self) -> bool:
        """Whether a server answers at the address."""
        try:
            with self._time_limit(LIVE_TIMEOUT):
                return bool(self._client.is_server_live(**self._limit(LIVE_TIMEOUT)))
        except Exception:  # each library has its own exceptions for a server that does not answer
            return False

    def require_live(self) -> None:
        """Raises an InputError where no server answers."""
        if not self.is_live():
            raise no_server(self.protocol, self.address)

    def config(self, model: str) -> dict[str, Any]:
        """The model's configuration in Triton's JSON form.

        Raises:
            InputError: an unknown model, or no server at the address.
            ServerFault: the server does not answer any more.
        """
        call = self._client.get_model_config
        found = self._ask(model, lambda left: call(model, **self._as_json, **self._limit(left)))
        return dict(found["config"] if self._grpc else found)

    def server_version(self) -> str:
        """The server's own version, e.g. `2.62.0`."""
        call = self._client.get_server_metadata
        found = self._ask("", lambda left: call(**self._as_json, **self._limit(left)))
        return str(found.get("version", ""))

    def index(self) -> list[dict[str, str]]:
        """Every model and version that the server knows: `name`, `version`, `state`, `reason`."""
        call = self._client.get_model_repository_index
        found = self._ask("", lambda left: call(headers=self._headers, **self._as_json, **self._limit(left)))
        return list(found.get("models", []) if self._grpc else found)

    def load(self, model: str) -> None:
        """Makes the server read the model's folder again.

        Raises:
            InputError: the model does not load, with Triton's reason.
            ServerFault: the server does not answer any more.
        """
        call = self._client.load_model
        self._ask(model, lambda left: call(model, headers=self._headers, **self._limit(left)), LOAD_TIMEOUT)

    def unload(self, model: str) -> None:
        """Makes the server unload the model."""
        call = self._client.unload_model
        self._ask(model, lambda left: call(model, headers=self._headers, **self._limit(left)))

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
            RequestRefused: the server refuses what is in the request.
            InputError: an unknown model or version, or no server at the address.
            ServerFault: the server fails, is overloaded, or does not answer before the deadline.
        """
        request = request_of(self._library, inputs, outputs, classes)

        def call(left: float) -> Any:
            limits = {"timeout": queue_timeout(left), **self._limit(left)}
            return self._client.infer(model, model_version=version, **request, **limits)

        return response_of(self._ask(model, call), outputs, self.protocol)

    def _limit(self, seconds: float) -> dict[str, float]:
        """The deadline as gRPC knows it, which tells it to the server."""
        return {"client_timeout": seconds} if self._grpc else {}

    @contextmanager
    def _time_limit(self, seconds: float) -> Iterator[None]:
        """Ends a request over HTTP with a TimeoutError after this time; the connection is a new one then."""
        if self._grpc:
            yield
            return
        from gevent import Timeout

        try:
            with Timeout(seconds, TimeoutError()):
                yield
        except TimeoutError:
            self._client.close()
            self._client = self._open()
            raise

    def _ask(self, model: str, call: Callable[[float], T], timeout: float | None = None) -> T:
        """Calls, with the seconds that are left, until it succeeds or may not be tried again.

        Args:
            timeout: seconds for everything; None for the connection's own.
        """
        from tritonclient.utils import InferenceServerException

        attempts = Attempts(self.connection.retry, timeout or self.connection.timeout)
        while True:
            try:
                with self._time_limit(attempts.remaining):
                    result = call(attempts.remaining)
                self._has_answered = True
                return result
            except (InferenceServerException, *CONNECTION_ERRORS) as error:
                cause, found = error, error_of(error, model, self.address)
            pause = attempts.pause_after(found)
            if pause is None:
                found = attempts.cause_of(found)
                if server_may_be_gone(found) and not self.is_live():
                    found = server_is_gone(self.protocol, self.address, self._has_answered)
                raise found from cause
            time.sleep(pause)
