"""Making a running server take another version without losing a request.

The encoder is loaded first and asked once; only then does the text model move to the new version. For as
long as the old text version still works on requests, its own encoder stays loaded.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np

from bertmp.core.errors import BertmpError, GateFailed, InputError
from bertmp.serve.client import Client
from bertmp.serve.repository import ModelFolders
from bertmp.serve.triton_client import Transport

PROBE = "What is the capital of France ?"
"""The text that a new version must answer before it counts."""

WAIT_SECONDS = 120.0
_TICK = 0.05


def promote(server: Transport, folders: ModelFolders, version: int) -> None:
    """Brings `version`, the highest in the repository, into service, and proves it with real requests.

    Errors: GateFailed with the server's reason where it does not load or does not answer.
    """
    try:
        server.load(folders.encoder.name)
        _wait_ready(server, folders.encoder.name, version)
        _ask_encoder(server, folders.encoder.name, version)
        server.load(folders.text.name)
        _wait_ready(server, folders.text.name, version)
        _ask_text(server, folders.text.name, version)
    except InputError as error:
        raise GateFailed(
            f"version {version} of '{folders.name}' is refused: {error.what}", error.where, error.todo
        ) from error


def settle(server: Transport, folders: ModelFolders, gone: int) -> None:
    """After `gone` left the text model's folder: the version below takes over, and `gone` is let finish.

    Errors: GateFailed where the version below does not come up.
    """
    version = folders.live()
    assert version is not None
    try:
        server.load(folders.text.name)
        _wait_ready(server, folders.text.name, version)
        _ask_text(server, folders.text.name, version)
        _wait_gone(server, folders.text.name, gone)
    except InputError as error:
        raise GateFailed(
            f"version {version} of '{folders.name}' does not come up: {error.what}", error.where, error.todo
        ) from error


def withdraw(server: Transport, folders: ModelFolders, version: int) -> None:
    """Puts a server back to where it was before `version`, whose folders are gone; as far as it lets us."""
    with contextlib.suppress(BertmpError):
        if folders.live() is None:
            server.unload(folders.text.name)
            server.unload(folders.encoder.name)
        else:
            settle(server, folders, version)
            server.load(folders.encoder.name)


def _state(server: Transport, model: str, version: int) -> tuple[str, str]:
    for entry in server.index():
        if entry.get("name") == model and entry.get("version") == str(version):
            return entry.get("state", "UNAVAILABLE"), entry.get("reason", "")
    return "UNAVAILABLE", "unknown"


def _wait_ready(server: Transport, model: str, version: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    state, reason = "", ""
    while time.monotonic() < deadline:
        state, reason = _state(server, model, version)
        if state == "READY":
            return
        if state == "UNAVAILABLE":
            break
        time.sleep(_TICK)
    if reason == "unknown":
        raise InputError(
            f"the server does not know version {version} of '{model}'",
            server.address,
            "let it serve this repository",
        )
    raise InputError(f"version {version} of '{model}' is not ready: {reason or state}", server.address)


def _wait_gone(server: Transport, model: str, version: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if _state(server, model, version)[0] == "UNAVAILABLE":
            return
        time.sleep(_TICK)
    raise InputError(
        f"version {version} of '{model}' does not end", server.address, "look at the server's log"
    )


def _ask_encoder(server: Transport, model: str, version: int) -> None:
    ids = np.zeros((2, 4), dtype=np.int64)
    logits = Client(server).encode(model, ids, np.ones_like(ids), np.zeros_like(ids), str(version))
    if logits.shape[0] != 2 or not np.isfinite(logits).all():
        raise InputError(
            "its encoder answers with numbers that are not finite", server.address, "check the graph"
        )


def _ask_text(server: Transport, model: str, version: int) -> None:
    found = Client(server).classify(model, [PROBE])
    if found.versions != [version]:
        raise InputError(
            f"version {found.versions[0]} answers in its place",
            server.address,
            "let the server take the newest",
        )
    if not np.isclose(found.probabilities.sum(), 1.0, atol=1e-5):
        raise InputError("its probabilities do not add up to 1", server.address, "check the graph")
