"""From a bundle to a served model: the repository, the Triton server, the client.

`from bertmp.serve import Client, AsyncClient`: they are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertmp.core.errors import RequestRefused as RequestRefused
    from bertmp.core.errors import ServerFault as ServerFault
    from bertmp.serve.async_client import AsyncClient as AsyncClient
    from bertmp.serve.client import Client as Client
    from bertmp.serve.retry import RetryPolicy as RetryPolicy

_MODULES = {
    "AsyncClient": "bertmp.serve.async_client",
    "Client": "bertmp.serve.client",
    "RequestRefused": "bertmp.core.errors",
    "RetryPolicy": "bertmp.serve.retry",
    "ServerFault": "bertmp.core.errors",
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'bertmp.serve' has no attribute {name!r}")
