"""A client that may load and unload a server's models: it shows the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bertmp.core.errors import BertmpError, InputError
from bertmp.serve.access import AccessKey, find_key
from bertmp.serve.client import Client
from bertmp.serve.retry import NO_RETRIES
from bertmp.serve.serving_options import Protocol

T = TypeVar("T")


class ControlClient(Client):
    """A connection that shows a key where the server asks for one.

    Args:
        url, protocol: as for `Client`.
        key: None shows none.
    """

    def __init__(self, url: str | None, protocol: Protocol, key: AccessKey | None) -> None:
        super().__init__(url, protocol, retry=NO_RETRIES)
        self._headers = None if key is None else key.headers(protocol)
        self._key = key
        self._loading: Client = self

    def load_over(self, other: Client | None) -> None:
        """Loads and unloads models over another protocol from now on, where that takes the key, too.

        Over HTTP, Triton keeps the clients waiting whose connections the same thread looks after, for as
        long as a model takes to load.

        Args:
            other: a connection to the same server; it is closed with this one.
        """
        if other is None:
            return
        client = ControlClient(other.address, other.protocol, self._key)
        other.close()
        try:
            client.index()
        except BertmpError:
            client.close()
        else:
            self._loading = client

    @property
    def loads_over(self) -> Protocol:
        """The protocol over which models are loaded and unloaded."""
        return self._loading.protocol

    def load(self, model: str) -> None:
        if self._loading is self:
            super().load(model)
        else:
            self._loading.load(model)

    def unload(self, model: str) -> None:
        if self._loading is self:
            super().unload(model)
        else:
            self._loading.unload(model)

    def close(self) -> None:
        if self._loading is not self:
            self._loading.close()
        super().close()

    def _ask(self, model: str, call: Callable[[float], T], timeout: float | None = None) -> T:
        try:
            return super()._ask(model, call, timeout)
        except BertmpError as error:
            if "is restricted" not in error.what:
                raise
            what = "the server loads and lists models for the holder of its key only"
            raise InputError(what, self.address, "name its key's file with --token-file") from error


def connect(url: str, token_file: Path | None = None) -> ControlClient:
    """A connection over the protocol that the address speaks; without a scheme, both are tried.

    Args:
        token_file: the file with the server's key; None for the user's own, which is shown to this machine
            alone.

    Raises:
        InputError: no server answers, the key cannot be read, or it is not the server's.
    """
    with Client(url, retry=NO_RETRIES) as tried:
        tried.require_live()
        protocol, address = tried.protocol, tried.address
    scheme, _, _ = url.rpartition("://")
    key = find_key(address, token_file)
    found = ControlClient(f"{scheme or protocol}://{address}", protocol, key)
    try:
        found.index()
    except BaseException:
        found.close()
        raise
    return found
