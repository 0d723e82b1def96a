"""What a failed request means: the caller's mistake, or the server's fault."""

from __future__ import annotations

import asyncio
import re
import ssl
from http import HTTPStatus
from http.client import HTTPException

from bertmp.core.errors import (
    AnswerTooLate,
    BertmpError,
    InputError,
    RequestRefused,
    ServerFault,
    short_message,
)

CONNECTION_ERRORS = (OSError, EOFError, HTTPException, ValueError)
"""What the HTTP clients raise where the connection breaks or what comes is not HTTP; timeouts among them."""

LOOK = "look at the server's log"
_MISTAKES = {
    *("INVALID_ARGUMENT", "OUT_OF_RANGE", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNIMPLEMENTED"),
    *("UNAUTHENTICATED", "PERMISSION_DENIED"),
    *("400", "401", "403", "405", "409", "411", "413", "414", "415", "422", "431", "501"),
}
_LATER = frozenset(("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "429", "502", "503"))
_TOO_LATE = frozenset(("DEADLINE_EXCEEDED", "408", "504"))

_MALFORMED = re.compile(r"failed to parse|unable to parse|attempt to access|sent message larger", re.I)
"""The caller's mistakes that Triton reports as internal errors (INTERNAL, 500)."""
_PASSING = re.compile(r"stub process|not (at )?ready|RST_STREAM|stream removed|GOAWAY", re.I)
"""A worker that died, a model that is being loaded, a connection that broke: gone a moment later."""
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed", re.I)
_UNENCRYPTED = re.compile(r"WRONG_VERSION_NUMBER|wrong version number|SSL_ERROR|Ssl handshake", re.I)
_VERSION = re.compile(r"'([^']*)' version (\d+) is not found")
_NOISE = re.compile(r"^\[request id: [^\]]*\] ?|\. NOTE: Setting a non-zero max_batch_size.*$", re.S)
_NOT_JSON = "an exception occurred in the client while decoding"
_PHRASES = {str(status.value): status.phrase for status in HTTPStatus}
_NO_OTHERS = re.compile(r"but missing required input\(s\) \]\. Please provide all required input\(s\)\.?$")


def error_of(error: Exception, model: str, address: str) -> BertmpError:
    """The error for what tritonclient or the connection below it raises; see `error_of_reply`."""
    from tritonclient.utils import InferenceServerException

    if isinstance(error, InferenceServerException):
        return error_of_reply(str(error.message()), str(error.status() or ""), model, address)
    return _error_of_connection(error, model, address)


def error_of_reply(message: str, status: str, model: str, address: str) -> BertmpError:
    """The error for what a server, or the client library in its place, says.

    Args:
        message: what it says.
        status: the gRPC status (`StatusCode.NAME`) or the HTTP status; empty where the library refuses.
        model: the model that was asked; empty where none was.
        address: the server's `host:port`.
    """
    code = status.rpartition(".")[2]
    where = f"{model} at {address}" if model else address
    message = _NO_OTHERS.sub("and takes no others", _NOISE.sub("", message)).strip().rstrip(".")
    if not message or message.startswith(_NOT_JSON):  # a proxy's page, for one
        message = f"the answer is {code} {_PHRASES.get(code, '')}".strip()
    if found := _VERSION.search(message):
        what, todo = f"the server has no version {found[2]} of '{found[1]}'", "see 'bertmp models'"
        return InputError(what, address, todo)
    if "not at ready state" in message:  # the version that answers was taken out of service meanwhile
        return ServerFault(message, where, LOOK, retryable=True)
    if "unknown model" in message or "is not found" in message or (code == "404" and model):
        what, todo = f"the server has no model '{model}'", "see 'bertmp models', or deploy it"
        return InputError(what, address, todo)
    if _UNTRUSTED.search(message) or _UNENCRYPTED.search(message):
        return _tls_error(message, address)
    if "is restricted" in message or code in _MISTAKES or not code or _MALFORMED.search(message):
        return RequestRefused(message, where, "fix the request")
    if code in _TOO_LATE:
        return too_late(where)
    if _PASSING.search(message) or code in _LATER:
        return ServerFault(message, where, LOOK, retryable=True)
    return ServerFault(message, where, LOOK)


def _error_of_connection(error: Exception, model: str, address: str) -> BertmpError:
    """The error for a connection that broke, or did not come about."""
    where = f"{model} at {address}" if model else address
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):  # two classes before Python 3.11
        return too_late(where)
    if isinstance(error, ssl.SSLError) or _UNTRUSTED.search(str(error)):
        return _tls_error(str(error), address)
    reason = short_message(error) or type(error).__name__
    return ServerFault(f"the connection to the server broke: {reason}", where, LOOK, retryable=True)


def too_late(where: str) -> AnswerTooLate:
    """The error where no answer came before the deadline."""
    return AnswerTooLate("the server does not answer in time", where, f"give it longer, or {LOOK}")


def no_server(protocol: str, address: str) -> InputError:
    """The error where nothing at an address has ever answered."""
    what = f"no Triton server answers over {protocol}"
    todo = "start one with 'bertmp serve', or check the port: 8001 is gRPC's and 8000 HTTP's by default"
    return InputError(what, address, todo)


def server_may_be_gone(error: BertmpError) -> bool:
    """Whether an error is one that a server which is not there at all gives, too."""
    return isinstance(error, ServerFault) and error.retryable


def server_is_gone(protocol: str, address: str, has_answered: bool) -> BertmpError:
    """The error where nothing answers at an address.

    Args:
        has_answered: whether a server has answered there before.
    """
    if not has_answered:
        return no_server(protocol, address)
    todo = f"start it again, or {LOOK}"
    return ServerFault("the server stopped answering", address, todo, retryable=True)


def _tls_error(message: str, address: str) -> InputError:
    if _UNTRUSTED.search(message):
        what = "the server's certificate is not trusted, or is another host's"
        return InputError(what, address, "name its authority's file with --tls-ca")
    what = "no encrypted connection comes about"
    return InputError(what, address, "check whether the server speaks TLS there and wants a certificate")
