"""One inference protocol, two transports: tritonclient's gRPC and HTTP clients behind one face.

Everything that can go wrong on the way comes out as an InputError of one line that names the address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any, Literal, TypeVar

import numpy as np

from bertmp.core.errors import InputError

Protocol = Literal["grpc", "http"]
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")
PORTS: Mapping[Protocol, int] = {"grpc": 8001, "http": 8000}

TIMEOUT = 120.0
"""Seconds until a request without an answer is given up."""
LOAD_TIMEOUT = 600.0
"""Seconds that loading a model may take; a TensorRT engine of gigabytes takes a while."""

_T = TypeVar("_T")


def protocol_named(name: str) -> Protocol:
    """Checks a protocol's name.

    Errors: InputError for one that is neither `grpc` nor `http`.
    """
    for known in PROTOCOLS:
        if name == known:
            return known
    raise InputError(f"unknown protocol '{name}'", "", f"use one of {', '.join(PROTOCOLS)}")


def address_of(url: str | None, protocol: Protocol) -> tuple[str, bool]:
    """`host:port` and whether it is encrypted; with or without a scheme, the default port where none is said.

    Errors: InputError for a scheme that belongs to another protocol.
    """
    rest = (url or "127.0.0.1").strip().rstrip("/")
    scheme, _, address = rest.rpartition("://")
    allowed = {"grpc": ("", "grpc", "grpcs"), "http": ("", "http", "https")}[protocol]
    if scheme not in allowed:
        raise InputError(
            f"not an address for {protocol}", rest, f"begin it with {allowed[1]}:// or with nothing"
        )
    if not address or "/" in address:
        raise InputError("not a server's address", rest, "write HOST:PORT")
    if ":" not in address.rpartition("]")[2]:
        address = f"{address}:{PORTS[protocol]}"
    return address, scheme.endswith("s")


class Transport:
    """A connection to one server; usable from one thread. Close it, or use it in a `with` statement.

    Args:
        url: the server's address.
        protocol: `grpc` or `http`.
    """

    def __init__(self, url: str | None, protocol: Protocol = "grpc") -> None:
        self.protocol = protocol
        self.address, encrypted = address_of(url, protocol)
        self._grpc = protocol == "grpc"
        if self._grpc:
            import tritonclient.grpc as library

            self._client = library.InferenceServerClient(self.address, ssl=encrypted)
        else:
            import tritonclient.http as library

            self._client = library.InferenceServerClient(
                self.address, ssl=encrypted, connection_timeout=10.0, network_timeout=LOAD_TIMEOUT
            )
        self._library = library

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def is_live(self) -> bool:
        """Whether a server answers at the address."""
        try:
            return bool(self._client.is_server_live())
        except Exception:  # each library has its own way to say that nobody is there
            return False

    def require_live(self) -> None:
        """Errors: InputError where no server answers."""
        if not self.is_live():
            raise InputError(
                f"no Triton server answers over {self.protocol}",
                self.address,
                "start one with 'bertmp serve'",
            )

    def config(self, model: str) -> dict[str, Any]:
        """The model's configuration in Triton's JSON form.

        Errors: InputError for an unknown model or a dead server.
        """
        options = {"as_json": True} if self._grpc else {}
        found = self._ask(model, lambda: self._client.get_model_config(model, **options))
        return dict(found["config"] if self._grpc else found)

    def server_version(self) -> str:
        """The server's own version, e.g. `2.62.0`."""
        options = {"as_json": True} if self._grpc else {}
        return str(self._ask("", lambda: self._client.get_server_metadata(**options)).get("version", ""))

    def index(self) -> list[dict[str, str]]:
        """Every model and version that the server knows: `name`, `version`, `state`, `reason`."""
        options = {"as_json": True} if self._grpc else {}
        found = self._ask("", lambda: self._client.get_model_repository_index(**options))
        return list(found.get("models", []) if self._grpc else found)

    def load(self, model: str) -> None:
        """Makes the server read the model's folder anew.

        Errors: InputError with Triton's reason where the model does not load.
        """
        options = {"client_timeout": LOAD_TIMEOUT} if self._grpc else {}
        self._ask(model, lambda: self._client.load_model(model, **options))

    def unload(self, model: str) -> None:
        """Makes the server forget the model."""
        self._ask(model, lambda: self._client.unload_model(model))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, tuple[np.ndarray, str]],
        outputs: Sequence[str],
        version: str = "",
        classes: int = 0,
    ) -> tuple[dict[str, np.ndarray], int]:
        """One request.

        Args:
            inputs: name → (array `[batch, …]`, Triton's name of its type, e.g. `INT64`).
            outputs: the outputs wanted.
            version: the model's version; empty for the one Triton takes.
            classes: above 0, outputs come as Triton's `value:index:label` strings, this many.

        Returns:
            The outputs by name, and the version that answered.

        Errors: InputError for an unknown model, a refused request or a dead server.
        """
        sent = [self._input(name, array, kind) for name, (array, kind) in inputs.items()]
        wanted = [self._library.InferRequestedOutput(name, class_count=classes) for name in outputs]
        options = {"client_timeout": TIMEOUT} if self._grpc else {}
        result = self._ask(
            model,
            lambda: self._client.infer(model, sent, model_version=version, outputs=wanted, **options),
        )
        response = result.get_response()
        answered = response.model_version if self._grpc else response["model_version"]
        return {name: result.as_numpy(name) for name in outputs}, int(answered)

    def _input(self, name: str, array: np.ndarray, kind: str) -> Any:
        value = self._library.InferInput(name, list(array.shape), kind)
        value.set_data_from_numpy(array)
        return value

    def _ask(self, model: str, call: Callable[[], _T]) -> _T:
        from tritonclient.utils import InferenceServerException

        try:
            return call()
        except InferenceServerException as error:
            raise self._refusal(model, str(error.message()), str(error.status() or "")) from error
        except (OSError, ValueError, EOFError, HTTPException) as error:  # the HTTP client's own
            self.require_live()
            raise InputError(
                f"the server broke off: {error}", self.address, "look at the server's log"
            ) from error

    def _refusal(self, model: str, message: str, status: str) -> InputError:
        """What the server said, or that nobody said anything."""
        self.require_live()
        if "unknown model" in message or "is not found" in message:
            return InputError(
                f"the server has no model '{model}'", self.address, "see 'bertmp models', or deploy it"
            )
        if "DEADLINE_EXCEEDED" in status or "Deadline Exceeded" in message:
            return InputError("the server does not answer in time", self.address, "look at the server's log")
        return InputError(
            message, f"{model} at {self.address}" if model else self.address, "mend the request"
        )


def connect(url: str) -> Transport:
    """A connection over whichever of the two protocols the address speaks; its scheme says which, if any.

    Errors: InputError where no server answers.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    tries: tuple[Protocol, ...] = ("grpc",) if scheme in ("grpc", "grpcs") else ("http",)
    if not scheme:
        # A bare host means HTTP's port; a port is tried as HTTP first, then as gRPC.
        tries = ("http", "grpc") if ":" in url else ("http",)
    for protocol in tries:
        transport = Transport(url, protocol)
        if transport.is_live():
            return transport
        transport.close()
    raise InputError("no Triton server answers", url, "start one with 'bertmp serve'")
