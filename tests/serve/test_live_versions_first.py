"""Clients are answered while a version is loaded and tried beside them: who gives way, and how."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bertmp.export.cpu_session.worker import NICE, at_low_priority
from bertmp.serve.control import ControlClient
from bertmp.serve.deployment import connection
from bertmp.serve.repository import ModelFolders
from bertmp.serve.rollout import loaded
from bertmp.serve.staging import copy_version, staging
from tests.serve.conftest import Served

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_models_are_loaded_over_grpc_where_its_address_is_known(served: Served, protocol: str) -> None:
    """Over HTTP, Triton keeps clients waiting whose connections the same thread looks after."""
    url = f"{protocol}://{served.url(protocol)}"
    with connection(url, None, served.repository) as found:
        assert isinstance(found, ControlClient)
        assert (found.protocol, found.loads_over) == (protocol, "grpc")


def test_models_are_loaded_over_http_where_no_other_address_is_known(served: Served, tmp_path: Path) -> None:
    with connection(f"http://{served.running.http}", None, tmp_path) as found:
        assert isinstance(found, ControlClient)
        assert found.loads_over == "http"


@linux
def test_workers_give_way_only_while_their_version_is_tried(served: Served) -> None:
    def priorities(model: str) -> set[int]:
        server = psutil.Process(served.running.pid)
        found = [child for child in server.children() if f"{model}_0_" in " ".join(child.cmdline())]
        assert found
        return {child.nice() - os.nice(0) for child in found}

    folders = ModelFolders(served.repository, "trec")
    url = f"grpc://{served.running.grpc}"
    with connection(url, None, served.repository) as server, staging(folders) as staged:
        assert server is not None
        copy_version(folders, staged, 1)
        with loaded(server, staged, 1):
            assert priorities(staged.text.name) == priorities(staged.encoder.name) == {NICE}
        assert priorities("trec") == priorities("trec_encoder") == {0}


@linux
def test_work_at_low_priority_leaves_the_callers_as_it_is() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert at_low_priority(lambda: os.getpriority(os.PRIO_PROCESS, 0)) == max(before, NICE)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    with pytest.raises(ZeroDivisionError):
        at_low_priority(lambda: 1 / 0)


@linux
def test_work_at_low_priority_does_not_raise_a_lower_one() -> None:
    """As under `nice -n 15 bertmp serve`, where raising it fails for everybody but root."""
    code = (
        "import os; os.nice(15); from bertmp.export.cpu_session.worker import at_low_priority; "
        "print(os.nice(0), at_low_priority(lambda: os.getpriority(os.PRIO_PROCESS, 0)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, during = map(int, done.stdout.split())
    assert during == before
