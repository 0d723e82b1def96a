"""The client for asyncio: the same questions and answers as `Client`, any number of them at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from typing_extensions import Self, Unpack

from bertmp.core.errors import BertmpError, RequestRefused
from bertmp.serve.connection import Connection, ConnectionOptions, possible_connections
from bertmp.serve.faults import (
    CONNECTION_ERRORS,
    error_of,
    no_server,
    server_is_gone,
    server_may_be_gone,
)
from bertmp.serve.retry import Attempts
from bertmp.serve.served_tasks import SETTINGS
from bertmp.serve.serving_options import Protocol
from bertmp.serve.streaming import AskedText, refusal
from bertmp.serve.task_answers import Answer, RefusedText, answers_of
from bertmp.serve.text_requests import ServedModel, batches, class_names, text_inputs, told_labels
from bertmp.serve.triton_client import LIVE_TIMEOUT
from bertmp.serve.wire import queue_timeout, request_of, response_of

T = TypeVar("T")


class AsyncClient:
    """Asks the models that `bertmp deploy` made, in asyncio. Use it with `async with`.

    Any number of tasks may use it; `concurrency` requests are under way at the same time, the others wait.

    Args:
        url, protocol, tls_ca, tls_cert, tls_key, timeout, retry: as for `Client`; the server is first asked
            by the first request.
        concurrency: the most requests that are under way.

    Raises:
        InputError: not an address, or a certificate's file that cannot be read.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: Protocol | None = None,
        *,
        concurrency: int = 16,
        **options: Unpack[ConnectionOptions],
    ) -> None:
        self._possible = possible_connections(url, protocol, **options)
        self._concurrency = concurrency
        self._slots, self._opening = asyncio.Semaphore(concurrency), asyncio.Lock()
        self._opened: _Opened | None = None
        self._has_answered = False
        self._models: dict[str, ServedModel] = {}
        self._labels: dict[tuple[str, int], list[str]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.client.close()
            self._opened = None

    async def is_live(self) -> bool:
        """Whether a server answers at the address."""
        try:
            return await (await self._open()).is_live()
        except BertmpError:
            return False

    async def describe(self, model: str) -> ServedModel:
        """What a text model answers; the server is asked once per model.

        Raises:
            InputError: not a text model, an unknown one, or no server.
            ServerFault: the server does not answer any more.
        """
        if model not in self._models:
            opened = await self._open()
            found = await self._ask(model, lambda left: opened.config(model, left))
            self._models[model] = ServedModel.of_config(model, found, opened.address)
        return self._models[model]

    async def ask(
        self, model: str, texts: Sequence[str], pairs: Sequence[str] | None = None, version: str = ""
    ) -> list[Answer]:
        """The answers to any number of texts, or pairs of texts, in their order; see `Client.ask`.

        Raises:
            RequestRefused: the server refuses a text.
            InputError: no texts, single texts for a model of pairs or the reverse, an unknown model or
                version, or no server.
            ServerFault: the server fails, is overloaded, or does not answer before the deadline.
        """
        served, opened = await self.describe(model), await self._open()
        served.require_fit(model, texts, pairs, opened.address)
        requests = batches(texts, pairs, served.max_batch)
        tasks = [asyncio.ensure_future(self._answers(model, served, *one, version)) for one in requests]
        try:
            return [answer for answers in await asyncio.gather(*tasks) for answer in answers]
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def stream(
        self,
        model: str,
        texts: Iterable[str | tuple[str, str]] | AsyncIterable[str | tuple[str, str]],
        *,
        skip_refused: bool = False,
    ) -> AsyncIterator[Answer | RefusedText]:
        """The answers to any number of texts, or pairs of texts, in their order and in bounded memory.

        Each text is a request of its own: the server batches what is there at the same time.

        Args:
            skip_refused: whether a text that the server refuses gets a `RefusedText` and the others go on.

        Raises:
            InputError, ServerFault: see `ask`; a refused text is named by its number.
        """
        waiting: deque[asyncio.Future[Answer | RefusedText]] = deque()

        async def next_reply() -> Answer | RefusedText:
            reply = await waiting.popleft()
            if isinstance(reply, RefusedText) and not skip_refused:
                raise refusal(reply)
            return reply

        try:
            number = 0
            async for text in _each(texts):
                number += 1
                one, pair = (text, None) if isinstance(text, str) else text
                asked = AskedText(number, one, pair, f"text {number}")
                waiting.append(asyncio.ensure_future(self._reply(model, asked)))
                if len(waiting) >= 2 * self._concurrency:
                    yield await next_reply()
            while waiting:
                yield await next_reply()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _reply(self, model: str, asked: AskedText) -> Answer | RefusedText:
        """The answer to one text, or why the server refuses it."""
        pairs = None if asked.pair is None else [asked.pair]
        try:
            return (await self.ask(model, [asked.text], pairs))[0]
        except RequestRefused as error:
            return RefusedText(text=asked.text, text_pair=asked.pair, error=error.what, where=asked.where)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        version: str = "",
        classes: int = 0,
    ) -> tuple[dict[str, np.ndarray], int]:
        """Sends one request; see `TritonClient.infer`."""
        opened = await self._open()
        request = request_of(opened.library, inputs, outputs, classes)

        def call(left: float) -> Awaitable[Any]:
            return opened.infer(model, version, request, left)

        async with self._slots:
            found = await self._ask(model, call)
        return response_of(found, outputs, opened.connection.protocol)

    async def _answers(
        self,
        model: str,
        served: ServedModel,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        version: str,
    ) -> list[Answer]:
        """One request's answers; see `Client._answers`."""
        inputs, wanted = text_inputs(texts, pairs), served.answer_outputs
        while True:
            outputs, answered = await self.infer(model, inputs, wanted, version)
            if (told := told_labels(outputs)) is not None:
                self._labels[model, answered] = told
            if not served.classes or (model, answered) in self._labels:
                labels = self._labels.get((model, answered), ())
                return answers_of(served.task, labels, texts, pairs, outputs, answered)
            if SETTINGS in served.outputs and SETTINGS not in wanted:
                wanted = [*wanted, SETTINGS]
            else:
                first = text_inputs(texts[:1], pairs and pairs[:1])
                found, known = await self.infer(model, first, ("PROBABILITIES",), version, served.classes)
                self._labels[model, known] = class_names(found)

    async def _open(self) -> _Opened:
        """The connection; where the protocol is not known, the first at which a server answers.

        Raises:
            InputError: no server answers.
        """
        async with self._opening:
            if self._opened is not None:
                return self._opened
            for connection in self._possible:
                opened = _Opened(connection)
                if len(self._possible) == 1 or await opened.is_live():
                    self._opened = opened
                    return opened
                await opened.client.close()
        raise no_server(" or ".join(one.protocol for one in self._possible), self._possible[0].address)

    async def _ask(self, model: str, call: Callable[[float], Awaitable[T]]) -> T:
        """Calls, with the seconds that are left, until it succeeds or may not be tried again."""
        from tritonclient.utils import InferenceServerException

        opened = await self._open()
        attempts = Attempts(opened.connection.retry, opened.connection.timeout)
        while True:
            try:
                result = await asyncio.wait_for(call(attempts.remaining), attempts.remaining)
                self._has_answered = True
                return result
            except (InferenceServerException, *opened.errors) as error:
                cause, found = error, error_of(error, model, opened.address)
            pause = attempts.pause_after(found)
            if pause is None:
                found = attempts.cause_of(found)
                if server_may_be_gone(found) and not await opened.is_live():
                    found = server_is_gone(opened.connection.protocol, opened.address, self._has_answered)
                raise found from cause
            await asyncio.sleep(pause)


class _Opened:
    """tritonclient's client of one connection, and what differs between the protocols."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.address = connection, connection.address
        self._grpc = connection.protocol == "grpc"
        self.library = import_module(f"tritonclient.{connection.protocol}")
        new = import_module(f"tritonclient.{connection.protocol}.aio").InferenceServerClient
        if self._grpc:
            self.errors: tuple[type[Exception], ...] = (*CONNECTION_ERRORS, asyncio.TimeoutError)
            files = connection.tls.grpc_arguments()
            self.client = new(self.address, ssl=connection.encrypted, **files)
        else:
            from aiohttp import ClientError

            self.errors = (*CONNECTION_ERRORS, asyncio.TimeoutError, ClientError)
            context = connection.tls.context() if connection.encrypted else None
            limits = {"conn_limit": 0, "conn_timeout": None}  # there is a limit of ours for each
            self.client = new(self.address, ssl=connection.encrypted, ssl_context=context, **limits)

    def _limit(self, seconds: float) -> dict[str, float]:
        return {"client_timeout": seconds} if self._grpc else {}

    async def is_live(self) -> bool:
        try:
            call = self.client.is_server_live(**self._limit(LIVE_TIMEOUT))
            return bool(await asyncio.wait_for(call, LIVE_TIMEOUT))
        except Exception:  # each library has its own exceptions for a server that does not answer
            return False

    async def config(self, model: str, left: float) -> dict[str, Any]:
        if self._grpc:
            found = await self.client.get_model_config(model, as_json=True, client_timeout=left)
            return dict(found["config"])
        return dict(await self.client.get_model_config(model))

    async def infer(self, model: str, version: str, request: dict[str, Any], left: float) -> Any:
        limits = {"timeout": queue_timeout(left), **self._limit(left)}
        return await self.client.infer(model, model_version=version, **request, **limits)


async def _each(texts: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield text
        return
    for one in texts:
        yield one
