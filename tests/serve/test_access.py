"""Who may change a server: the holder of its key, and nobody else on this machine."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bertmp import infer, rollback
from bertmp.core.errors import InputError
from bertmp.serve import access, hidden_arguments
from bertmp.serve.access import find_key, load_or_create_key, read_key
from bertmp.serve.client import Client
from bertmp.serve.control import ControlClient, connect
from bertmp.serve.exposure import check_exposure
from bertmp.serve.http_request import Endpoint
from bertmp.serve.serve_options import RunningServer, ServeOptions
from bertmp.serve.server import TritonServer
from tests.conftest import RunBertmp
from tests.serve.bundles import deploy
from tests.serve.test_serve_command import FREE

FREE_PORTS: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
NEW_TRITON, OLD_TRITON = "2.59.0", "2.51.0"


@pytest.fixture(scope="module")
def folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(repository, tmp_path_factory.mktemp("access") / "repository"))


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("key") / "key"


@pytest.fixture(scope="module")
def running(triton: None, folder: Path, key_file: Path) -> Iterator[RunningServer]:
    os.environ["BERTMP_TEST_SECRET"] = "secret-of-the-caller"
    try:
        with TritonServer(ServeOptions(folder, **FREE_PORTS, token_file=key_file)) as server:
            yield server
    finally:
        del os.environ["BERTMP_TEST_SECRET"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_model_control_without_the_key_is_refused(running: RunningServer, protocol: Any) -> None:
    url = running.http if protocol == "http" else running.grpc
    with Client(url, protocol) as client:
        for call in (client.index, lambda: client.load("trec"), lambda: client.unload("trec")):
            with pytest.raises(InputError, match="is restricted"):
                call()
    with ControlClient(url, protocol, None) as client, pytest.raises(InputError, match="--token-file"):
        client.load("trec")
    assert len(infer("trec", ["Who ?"], url=url, protocol=protocol)) == 1


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_model_control_with_the_key_works(running: RunningServer, key_file: Path, protocol: str) -> None:
    url = running.http if protocol == "http" else running.grpc
    with connect(url, key_file) as client:
        client.load("trec")
        assert {entry["name"] for entry in client.index()} == {"trec", "trec_encoder"}


@pytest.mark.parametrize(
    "path",
    ["/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status", "/v2/logging", "/v2/trace/setting"],
)
def test_each_restricted_interface_needs_the_key(running: RunningServer, key_file: Path, path: str) -> None:
    assert Endpoint(running.http).get(path).status == 403
    assert Endpoint(running.http, read_key(key_file).headers()).get(path).status != 403


@pytest.mark.slow
def test_deploy_and_rollback_need_the_key_file_of_the_server(
    running: RunningServer, folder: Path, key_file: Path, other_bundle: Path
) -> None:
    with pytest.raises(InputError, match="for the holder of its key only"):
        deploy(other_bundle, "trec", folder, running.http)
    assert infer("trec", ["Who ?"], url=running.grpc)[0].version == 1
    done = deploy(other_bundle, "trec", folder, running.http, token_file=key_file)
    assert infer("trec", ["Who ?"], url=running.grpc)[0].version == done.version
    rollback("trec", folder, running.grpc, token_file=key_file)
    assert infer("trec", ["Who ?"], url=running.grpc)[0].version == 1


def test_key_is_nowhere_that_other_users_read(running: RunningServer, key_file: Path) -> None:
    key = read_key(key_file).value
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    server = psutil.Process(running.pid)
    for process in (server, *server.children()):
        assert key not in " ".join(process.cmdline())
        assert stat.S_IMODE(Path(f"/proc/{process.pid}/environ").stat().st_mode) == 0o400
    assert "bertmp-key=not-shown" in " ".join(server.cmdline())


def test_another_user_of_the_machine_learns_no_key_and_loads_nothing(
    running: RunningServer, key_file: Path, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    key_file.parent.chmod(0o755)
    code = (
        "import sys, urllib.request, urllib.error\n"
        "for path in sys.argv[2:]:\n"
        "    try: print(open(path, 'rb').read())\n"
        "    except PermissionError: print('refused')\n"
        "url = 'http://' + sys.argv[1] + '/v2/repository/models/trec/load'\n"
        "try: print(urllib.request.urlopen(urllib.request.Request(url, method='POST')).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
    )
    paths = [str(key_file), f"/proc/{running.pid}/environ", f"/proc/{running.pid}/cmdline"]
    command = [shutil.which("python3", path="/usr/bin:/bin") or "", "-c", code, running.http, *paths]
    if not command[0]:
        pytest.skip("no Python that another user can run")
    done = subprocess.run(
        command, user=65534, group=65534, extra_groups=[], cwd="/", capture_output=True, text=True
    )
    key, environ, cmdline, status = done.stdout.splitlines()
    assert (key, environ, status) == ("refused", "refused", "403")
    assert read_key(key_file).value not in cmdline
    assert "not-shown" in cmdline


def test_workers_do_not_get_the_environment_or_the_key(running: RunningServer, key_file: Path) -> None:
    workers = psutil.Process(running.pid).children()
    assert len(workers) >= 2
    for worker in workers:
        environment = worker.environ()
        assert "secret-of-the-caller" not in environment.values()
        assert not any(read_key(key_file).value in value for value in environment.values())
        assert set(environment) <= {
            *(
                "PATH",
                "LD_LIBRARY_PATH",
                "PYTHONDONTWRITEBYTECODE",
                "HOME",
                "LANG",
                "LC_ALL",
                "LC_CTYPE",
                "TZ",
            ),
            *("TMPDIR", "LD_PRELOAD", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
            *("PWD", "SHLVL", "_"),  # the shell's that Triton starts them with
        }


def test_serve_says_where_the_key_can_be_seen_and_serves(
    triton: None, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that forbids ptrace."""

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(hidden_arguments, "_start_stack", refuse)
    monkeypatch.setenv("BERTMP_TEST_PASSED", "passed on")
    lines: list[str] = []
    options = ServeOptions(
        repository, **FREE_PORTS, token_file=tmp_path / "key", progress=lambda line, *_: lines.append(line)
    )
    with TritonServer(options) as running, connect(running.http, tmp_path / "key") as client:
        assert client.index()
    assert [line for line in lines if line.startswith("warning: other users of this machine can read the")]


def test_key_file_is_made_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "key"
    made = load_or_create_key(path)
    assert load_or_create_key(path) == made
    assert re.fullmatch(r"[\w-]{43}", made.value)
    assert made.value not in repr(made)


def test_bad_key_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(InputError, match="cannot read the key"):
        read_key(path)
    path.write_text("a" * 40)
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_key(path)
    path.chmod(0o600)
    assert read_key(path).value == "a" * 40
    path.write_text("short")
    with pytest.raises(InputError, match="holds no key"):
        read_key(path)


def test_users_own_key_is_shown_to_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERTMP_HOME", str(tmp_path))
    assert find_key("127.0.0.1:8000", None) is None
    key = load_or_create_key(None)
    assert find_key("127.0.0.1:8000", None) == find_key("[::1]:8000", None) == key
    assert find_key("localhost:8000", None) == key
    assert find_key("10.0.0.1:8000", None) is find_key("example.org:8000", None) is None
    assert find_key("10.0.0.1:8000", access.default_key_file()) == key


def test_exposure_beyond_this_machine_is_refused_or_told() -> None:
    repository = Path("repository")
    assert check_exposure(ServeOptions(repository), OLD_TRITON) == ()
    everywhere = ServeOptions(repository, host="0.0.0.0")
    with pytest.raises(InputError, match=r"CVE-2025-23319.*fixed in 25\.07.*--allow-vulnerable"):
        check_exposure(everywhere, OLD_TRITON)
    with pytest.raises(InputError, match="known vulnerabilities"):
        check_exposure(ServeOptions(repository, metrics_host="10.0.0.1"), "unknown")
    anyone, unencrypted = check_exposure(everywhere, NEW_TRITON)
    assert "grpc on 0.0.0.0, health on 0.0.0.0, http on 0.0.0.0" in anyone
    assert "not encrypted" in unencrypted
    accepted = check_exposure(ServeOptions(repository, host="::", allow_vulnerable=True), OLD_TRITON)
    assert "accepted by option" in accepted[-1]


def test_serve_beyond_this_machine_with_a_vulnerable_triton_exits_with_2(
    triton: None, repository: Path, run_bertmp: RunBertmp
) -> None:
    if shutil.which("tritonserver"):
        pytest.skip("a tritonserver is on the PATH; it may be new enough")
    done = run_bertmp("serve", "--repository", repository, *FREE, "--host", "0.0.0.0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Triton 2.51.0 has known vulnerabilities (CVE-2025-23310,")
    assert done.stderr.count("\n") == 1
