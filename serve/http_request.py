"""One HTTP request to a server on its way up, in service or broken: short time limits, no exceptions.

By the standard library: inside gevent, which tritonclient uses, Ctrl-C would print a traceback, and a
connection that stays open would keep the server from stopping.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: HTTP's; None where nothing answered in time.
        body: its bytes.
        fault: why nothing came; empty where something did.
    """

    status: int | None
    body: bytes = b""
    fault: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def reason(self) -> str:
        """Why it is not a success, in one line: Triton's own words where there are some."""
        if self.status is None:
            return self.fault
        try:
            return " ".join(str(json.loads(self.body)["error"]).split())[:500]
        except (ValueError, KeyError, TypeError):
            return f"HTTP status {self.status}"

    def json(self) -> Any:
        """The body as JSON; None where it is not."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass(frozen=True)
class Endpoint:
    """A server's HTTP port.

    Attributes:
        address: `host:port`.
        headers: sent with each request.
    """

    address: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def get(self, path: str, timeout: float = 10.0) -> Reply:
        return self._request("GET", path, None, timeout)

    def post(self, path: str, value: Any = None, timeout: float = 10.0) -> Reply:
        body = b"" if value is None else json.dumps(value).encode()
        return self._request("POST", path, body, timeout)

    def _request(self, method: str, path: str, body: bytes | None, timeout: float) -> Reply:
        connection = http.client.HTTPConnection(self.address, timeout=timeout)
        try:
            connection.request(method, path, body, {**self.headers, "Connection": "close"})
            response = connection.getresponse()
            return Reply(response.status, response.read())
        except TimeoutError:
            return Reply(None, fault=f"no answer within {timeout:g} s")
        except (OSError, http.client.HTTPException) as error:
            return Reply(None, fault=f"no answer: {error or type(error).__name__}")
        finally:
            connection.close()
