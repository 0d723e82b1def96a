"""Makes a running server switch to another version without losing a request.

A new version is loaded and tried under a stand-in's name first. Then its encoder is loaded, and only then
does the text model move to it. As long as the old text version still works on requests, its own encoder
stays loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from bertmp.core.errors import BertmpError, GateFailed, InputError, ServerFault
from bertmp.serve.client import Client
from bertmp.serve.repository import ModelFolders
from bertmp.serve.served_consistency import texts_for
from bertmp.serve.task_answers import ClassAnswer

STATE_TIMEOUT = 120.0
"""Seconds that a version may take to become ready, or to finish its requests and end."""
_POLL_SECONDS = 0.05


def promote(server: Client, folders: ModelFolders, version: int) -> None:
    """Makes `version`, the highest in the repository, answer: the encoder is loaded before the text model.

    Raises:
        GateFailed: it does not load or does not answer, with the server's reason.
    """
    with failing_the_gate(f"version {version} of '{folders.name}' is refused"):
        _load_both(server, folders, version)


@contextmanager
def loaded(server: Client, staged: ModelFolders, version: int) -> Iterator[None]:
    """Has the server load a stand-in for the length of the block.

    Raises:
        GateFailed: it does not load or does not answer, with the server's reason.
    """
    try:
        with failing_the_gate(f"version {version} of '{staged.name}' is refused"):
            _load_both(server, staged, version)
        yield
    finally:
        for model in (staged.text.name, staged.encoder.name):
            with suppress(BertmpError):  # one that was never loaded
                server.unload(model)
        for model in (staged.text.name, staged.encoder.name):
            with suppress(BertmpError):
                _wait_for(server, model, version, "UNAVAILABLE")


def _load_both(server: Client, folders: ModelFolders, version: int) -> None:
    _load(server, folders.encoder.name, version)
    _check_encoder(server, folders.encoder.name, version)
    _load(server, folders.text.name, version)
    _check_text_model(server, folders.text.name, version)


def switch(server: Client, folders: ModelFolders, before: int | None) -> None:
    """Moves the text model from `before` to the version that its folder has as the highest now.

    Returns when `before` has finished its requests.

    Raises:
        GateFailed: the version does not become ready or does not answer.
    """
    version = folders.live()
    assert version is not None
    with failing_the_gate(f"version {version} of '{folders.name}' does not start"):
        _load(server, folders.text.name, version)
        _check_text_model(server, folders.text.name, version)
        if before is None or before == version:
            return
        state, _ = _wait_for(server, folders.text.name, before, "UNAVAILABLE")
        if state != "UNAVAILABLE":
            what = f"version {before} of '{folders.name}' does not end"
            raise InputError(what, server.address, "look at the server's log")


def abort(server: Client, folders: ModelFolders, version: int) -> None:
    """Restores, as far as the server allows, its state before `version`, whose folders are gone."""
    with suppress(BertmpError):
        if folders.live() is None:
            server.unload(folders.text.name)
            server.unload(folders.encoder.name)
        else:
            switch(server, folders, version)
            server.load(folders.encoder.name)


def reload(server: Client, folders: ModelFolders) -> None:
    """Makes the server take, as far as it can, what the folders of both models have."""
    for model in (folders.encoder.name, folders.text.name):
        with suppress(BertmpError):
            server.load(model)


@contextmanager
def failing_the_gate(what: str) -> Iterator[None]:
    """Turns what the server refuses or fails at into a GateFailed."""
    try:
        yield
    except (InputError, ServerFault) as error:
        raise GateFailed(f"{what}: {error.what}", error.where, error.todo) from error


def _load(server: Client, model: str, version: int) -> None:
    """Loads a model and waits until its version is ready."""
    server.load(model)
    state, reason = _wait_for(server, model, version, "READY", "UNAVAILABLE")
    if reason == "unknown":
        what = f"the server does not know version {version} of '{model}'"
        raise InputError(what, server.address, "let it serve this repository")
    if state != "READY":
        raise InputError(f"version {version} of '{model}' is not ready: {reason or state}", server.address)


def _wait_for(server: Client, model: str, version: int, *states: str) -> tuple[str, str]:
    """Waits until a version is in one of the states; its state and the server's reason for it."""
    deadline = time.monotonic() + STATE_TIMEOUT
    while True:
        found = "UNAVAILABLE", "unknown"
        for entry in server.index():
            if entry.get("name") == model and entry.get("version") == str(version):
                found = entry.get("state", "UNAVAILABLE"), entry.get("reason", "")
        if found[0] in states or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_SECONDS)


def _check_encoder(server: Client, model: str, version: int) -> None:
    outputs = [output["name"] for output in server.config(model)["output"]]
    zeros = np.zeros((2, 4), dtype=np.int64)
    inputs = {"input_ids": zeros, "attention_mask": np.ones_like(zeros), "token_type_ids": zeros}
    for name, found in server.infer(model, inputs, outputs, str(version))[0].items():
        if len(found) != 2 or not np.isfinite(found).all():
            raise InputError(f"the encoder's {name} are not finite", server.address, "check the graph")


def _check_text_model(server: Client, model: str, version: int) -> None:
    served = server.describe(model)
    texts, pairs = texts_for(served.task, served.pairs)
    (found,) = server.ask(model, texts[1:2], pairs and pairs[1:2])
    if found.version != version:
        what = f"version {found.version} answers in its place"
        raise InputError(what, server.address, "let the server take the newest")
    if isinstance(found, ClassAnswer) and not np.isclose(sum(found.scores.values()), 1.0, atol=1e-5):
        raise InputError("its probabilities do not add up to 1", server.address, "check the graph")
