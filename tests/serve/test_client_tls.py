"""Clients over TLS: the server's certificate is checked, and one of their own is shown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bertmp.core.errors import InputError
from bertmp.serve import AsyncClient, Client
from tests.conftest import RunBertmp
from tests.serve.test_proxy import Proxy, proxy
from tests.serve.test_proxy import pytestmark as needs_nginx
from tests.serve.test_tls import Authority, authority, serving

__all__ = ["authority", "proxy"]


def ask(url: str, **tls: Any) -> int:
    """The version that answers both clients."""

    async def ask_async() -> int:
        async with AsyncClient(url, **tls) as client:
            return (await client.ask("trec", ["Who ?"]))[0].version

    with Client(url, **tls) as client:
        version = client.ask("trec", ["Who ?"])[0].version
    assert asyncio.run(ask_async()) == version
    return version


def refused(url: str, match: str, **tls: Any) -> None:
    async def ask_async() -> None:
        async with AsyncClient(url, **tls) as client:
            await client.ask("trec", ["Who ?"])

    with Client(url, **tls) as client, pytest.raises(InputError, match=match):
        client.ask("trec", ["Who ?"])
    with pytest.raises(InputError, match=match):
        asyncio.run(ask_async())


def test_grpc_is_answered_to_who_trusts_the_authority(
    triton: None, repository: Path, authority: Authority, run_bertmp: RunBertmp
) -> None:
    trusted = authority.path("ca.pem")
    with serving(repository, authority) as running:
        assert ask(f"grpcs://{running.grpc}", tls_ca=trusted) == 1
        assert ask(running.grpc, protocol="grpc", tls_ca=str(trusted)) == 1
        refused(f"grpcs://{running.grpc}", "not trusted.*--tls-ca")
        done = run_bertmp("infer", "trec", "Who ?", "--url", f"grpcs://{running.grpc}", "--tls-ca", trusted)
        assert done.returncode == 0, done.stderr
        done = run_bertmp("infer", "trec", "Who ?", "--url", f"grpcs://{running.grpc}")
        assert done.returncode == 2
        assert "the server's certificate is not trusted" in done.stderr


def test_grpc_with_an_authority_is_answered_to_who_shows_a_certificate(
    triton: None, repository: Path, authority: Authority
) -> None:
    trusted = authority.path("ca.pem")
    own = {"tls_cert": authority.path("client.pem"), "tls_key": authority.path("client.key")}
    with serving(repository, authority, tls_ca=trusted) as running:
        assert ask(f"grpcs://{running.grpc}", tls_ca=trusted, **own) == 1
        with Client(f"grpcs://{running.grpc}", tls_ca=trusted) as client, pytest.raises(InputError):
            client.ask("trec", ["Who ?"])


@needs_nginx
def test_https_is_answered_to_who_trusts_the_proxy(proxy: Proxy, authority: Authority) -> None:
    assert ask(proxy.url, tls_ca=proxy.folder / "server.crt") == 1
    refused(proxy.url, "not trusted.*--tls-ca", tls_ca=authority.path("ca.pem"))
