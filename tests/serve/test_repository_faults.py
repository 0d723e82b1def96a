"""A repository on a disk that is full or read-only, a folder that is none, and two deployments at once."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from bertmp import infer, models, prune, rollback
from bertmp.core.errors import DiskFull, GateFailed, InputError
from bertmp.serve.audit import AUDIT, AuditLog, read_audit
from bertmp.serve.repository import ModelFolders, numbered, servable
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.server import TritonServer
from tests.conftest import RunBertmp
from tests.serve.bundles import deploy

DISK = 80 << 20
"""Bytes of the small disk: three versions, and some space."""


@contextmanager
def mounted(folder: Path, *words: str | Path) -> Iterator[None]:
    """A mount at the folder for the length of the block; the test is skipped where that is not possible."""
    try:
        done = subprocess.run(["mount", *words, folder], check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no 'mount' here")
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small(repository: Path, tmp_path: Path) -> Iterator[Path]:
    """The repository with one version of `trec`, on a small disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs"):
        yield Path(shutil.copytree(repository, disk / "repository"))


def fill(disk: Path, free: int) -> Path:
    """A file that leaves so many bytes of the disk free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        left = shutil.disk_usage(disk).free - free
        while left > 0:
            left -= stream.write(bytes(min(left, 1 << 20)))
    return filler


def content(repository: Path) -> dict[str, bytes]:
    """Everything in the repository but the records and the lock."""
    files = {path.relative_to(repository): path for path in repository.rglob("*") if path.is_file()}
    records = (AUDIT, "versions.json", ".lock")
    return {str(name): path.read_bytes() for name, path in files.items() if name.name not in records}


def folders_in(repository: Path) -> set[str]:
    return {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_dir()}


def assert_lines_are_json(repository: Path) -> None:
    for line in (repository / AUDIT).read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("free", [0, 4096, 6 << 20])
def test_deploy_on_a_full_disk_leaves_what_was_there_and_works_once_there_is_space(
    small: Path, other_bundle: Path, free: int
) -> None:
    before, folders = content(small), folders_in(small)
    filler = fill(small.parent, free)
    with pytest.raises(DiskFull, match="no space left on the disk") as raised:
        deploy(other_bundle, "trec", small)
    assert raised.value.exit_code == 2
    assert (content(small), folders_in(small)) == (before, folders)
    assert [record.version for record in models(small) if record.state == "live"] == [1]
    assert_lines_are_json(small)
    refused = [entry for entry in read_audit(small) if entry["outcome"] == "refused"]
    assert len(refused) == 1 or "this is not on record" in str(raised.value)
    filler.unlink()
    assert deploy(other_bundle, "trec", small).version in (2, 3)


@pytest.mark.slow
def test_server_answers_while_deploy_finds_the_disk_full(
    triton: None, small: Path, other_bundle: Path
) -> None:
    with TritonServer(ServeOptions(small, http_port=0, grpc_port=0, metrics_port=0)) as running:
        filler = fill(small.parent, 6 << 20)
        with pytest.raises(DiskFull):
            deploy(other_bundle, "trec", small, running.grpc)
        assert infer("trec", ["Who wrote Hamlet ?"], url=running.grpc)[0].version == 1
        filler.unlink()
        deployed = deploy(other_bundle, "trec", small, running.grpc)
        assert infer("trec", ["Who wrote Hamlet ?"], url=running.grpc)[0].version == deployed.version


def test_refusal_by_a_gate_on_a_full_disk_names_the_gate(
    small: Path, other_bundle: Path, run_bertmp: RunBertmp
) -> None:
    size = (small / AUDIT).stat().st_size
    (small / AUDIT).write_bytes((small / AUDIT).read_bytes() + b"\n" * (4096 - size))  # its block is full
    fill(small.parent, 0)
    done = run_bertmp("deploy", other_bundle, "--name", "trec", "--repository", small)
    assert done.returncode == GateFailed.exit_code
    assert done.stderr.startswith("error: parity was never run on the bundle")
    assert done.stderr.endswith(f"this is not on record: no space left on the disk ({small / AUDIT})\n")
    assert done.stderr.count("\n") == 1


def test_rollback_on_a_full_disk_changes_nothing(small: Path, other_bundle: Path) -> None:
    deploy(other_bundle, "trec", small)
    before = content(small)
    fill(small.parent, 0)
    with pytest.raises(DiskFull, match="no space left on the disk"):
        rollback("trec", small)
    assert content(small) == before
    assert [record.version for record in models(small) if record.state == "live"] == [2]
    assert_lines_are_json(small)


def test_prune_on_a_full_disk_makes_space(small: Path, other_bundle: Path) -> None:
    deploy(other_bundle, "trec", small)
    fill(small.parent, 0)
    assert prune("trec", small, keep=1).removed == (1,)
    assert {record.version: record.state for record in models(small)} == {1: "pruned", 2: "live"}
    assert numbered(small / "trec") == numbered(small / "trec_encoder") == [2]


def test_audit_line_that_the_disk_takes_in_part_is_taken_back(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, "m", "deploy")
    audit.write("staged", "done", 1)
    before = (tmp_path / AUDIT).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        with pytest.raises(DiskFull, match="limit on its size"):
            audit.write("promoted", "done", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / AUDIT).read_bytes() == before
    audit.write("promoted", "done", 1)
    assert [entry["step"] for entry in read_audit(tmp_path)] == ["staged", "promoted"]


def test_version_that_cannot_be_recorded_is_withdrawn(
    repository: Path, other_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    before, write = content(copy), AuditLog.write

    def full_at_the_end(self: AuditLog, step: str, outcome: str, *rest: object, **facts: object) -> None:
        if (step, outcome) == ("promoted", "done"):
            raise DiskFull("no space left on the disk", self.path)
        write(self, step, outcome, *rest, **facts)  # type: ignore[arg-type]

    monkeypatch.setattr(AuditLog, "write", full_at_the_end)
    with pytest.raises(DiskFull):
        deploy(other_bundle, "trec", copy)
    assert content(copy) == before
    assert {record.version: record.state for record in models(copy)} == {1: "live", 2: "refused"}


def test_read_only_repository_is_refused_and_can_be_read(
    repository: Path, other_bundle: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    (tmp_path / "seen").mkdir()
    with mounted(tmp_path / "seen", "--bind", "-o", "ro", copy):
        seen = tmp_path / "seen"
        try:
            (seen / "probe").touch()
            pytest.skip("a bind mount is not made read-only here")
        except OSError:
            pass
        commands: list[Callable[[], object]] = [
            lambda: deploy(other_bundle, "trec", seen),
            lambda: deploy(other_bundle, "another", seen),
            lambda: rollback("trec", seen),
            lambda: prune("trec", seen),
        ]
        for command in commands:
            with pytest.raises(InputError, match="cannot be written"):
                command()
        assert [record.version for record in models(seen)] == [1]
        assert servable(seen) == ["trec", "trec_encoder"]
    assert content(copy) == content(repository)


def test_folder_that_is_not_a_repository_is_refused_by_every_command(
    bundle: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    before = content(folder)
    commands: list[Callable[[], object]] = [
        lambda: deploy(bundle, "trec", folder),
        lambda: rollback("trec", folder),
        lambda: prune("trec", folder),
        lambda: models(folder),
        lambda: servable(folder),
    ]
    for command in commands:
        with pytest.raises(InputError, match="not a model repository: it has the file"):
            command()
    done = run_bertmp("deploy", bundle, "--name", "trec", "--repository", folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (content(folder), folders_in(folder)) == (before, folders_in(bundle))


def test_repository_with_a_readme_and_a_lost_and_found_may_be_new(bundle: Path, tmp_path: Path) -> None:
    for name in ("README.md", ".gitkeep"):
        (tmp_path / name).touch()
    (tmp_path / "lost+found").mkdir()
    assert models(tmp_path) == []
    assert deploy(bundle, "trec", tmp_path).version == 1


def test_two_deployments_at_once_follow_each_other(bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    with ThreadPoolExecutor(2) as pool:
        deployed = list(pool.map(lambda one: deploy(one, "trec", repository), (bundle, other_bundle)))
    assert sorted(one.version for one in deployed) == [1, 2]
    assert {record.version: record.state for record in models(repository)} == {1: "superseded", 2: "live"}
    folders = ModelFolders(repository, "trec")
    assert numbered(folders.text) == numbered(folders.encoder) == [1, 2]
    assert len(list(read_audit(repository))) == 4
