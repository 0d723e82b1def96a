"""Which versions are kept, which one answers, and what the record says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bertmp
from bertmp import models, prune, rollback
from bertmp.core.errors import GateFailed, InputError
from bertmp.serve.audit import AUDIT, AuditLog, read_audit
from bertmp.serve.prune import choose
from bertmp.serve.repository import RETIRED, ModelFolders, numbered, retire
from tests.serve.bundles import altered, deploy

RunBertmp = Callable[..., Any]
VERSIONS = 4


@pytest.fixture
def four(bundle: Path, tmp_path: Path) -> Path:
    """A repository with four versions of one model."""
    graph = (bundle / "model.onnx").read_bytes()
    for number in range(VERSIONS):
        other = altered(bundle, tmp_path / str(number), labels__txt=(bundle / "labels.txt").read_bytes())
        # Bytes behind a protobuf message's last field are one more unknown field: other bytes, same graph.
        (other / "model.onnx").write_bytes(graph + b"\xfa\x3f\x01" + bytes([number]))
        other = altered(other, tmp_path / f"bundle{number}")
        assert deploy(other, "m", tmp_path / "repository").version == number + 1
    return tmp_path / "repository"


def states(repository: Path) -> dict[int, str]:
    return {record.version: record.state for record in models(repository)}


def seen(repository: Path) -> tuple[list[int], list[int]]:
    """The versions that Triton sees, of the text model and of its encoder."""
    folders = ModelFolders(repository, "m")
    return numbered(folders.text), numbered(folders.encoder)


def test_rollback_goes_to_any_kept_version_and_forward_again(four: Path) -> None:
    result = rollback("m", four, to=2)
    assert result.version == 2
    assert result.notes == ("version 3 and 4 are retired",)
    assert seen(four) == ([1, 2], [1, 2])
    assert states(four) == {1: "superseded", 2: "live", 3: "retired", 4: "retired"}
    assert rollback("m", four, to=4).version == 4
    assert seen(four) == ([1, 2, 4], [1, 2, 4])
    assert states(four) == {1: "superseded", 2: "superseded", 3: "retired", 4: "live"}
    assert rollback("m", four).version == 2
    assert rollback("m", four, to=3).version == 3
    assert seen(four) == ([1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize(
    ("version", "message"),
    [(4, "version 4 of 'm' answers already"), (9, "version 9 of 'm' is not there"), (1, "was pruned")],
)
def test_rollback_to_what_cannot_answer_is_refused(four: Path, version: int, message: str) -> None:
    prune("m", four, keep=3)
    before = seen(four)
    with pytest.raises(InputError, match=message):
        rollback("m", four, to=version)
    assert seen(four) == before


def test_rollback_to_a_retired_version_that_lacks_a_file_is_refused(four: Path) -> None:
    rollback("m", four, to=2)
    (four / "m_encoder" / RETIRED / "4" / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"version 4 of 'm' lacks m_encoder/\.retired/4/model\.onnx"):
        rollback("m", four, to=4)
    assert seen(four) == ([1, 2], [1, 2])


def test_a_rollback_cut_short_before_its_text_model_moved_is_undone(four: Path, bundle: Path) -> None:
    retire(four / "m_encoder", 3)  # the first step of a rollback from 4 to 2
    rollback("m", four, to=1)
    assert seen(four) == ([1], [1])
    assert rollback("m", four, to=3).version == 3
    assert seen(four) == ([1, 3], [1, 3])


@pytest.mark.parametrize(
    ("versions", "live", "keep", "kept"),
    [
        ([1, 2, 3, 4], 4, 2, (3, 4)),
        ([1, 2, 3, 4], 4, 1, (4,)),
        ([1, 2, 3, 4], 2, 2, (2, 4)),  # what was rolled back may come back
        ([1, 2, 3, 4], 1, 3, (1, 3, 4)),
        ([1, 2], 2, 5, (1, 2)),
        ([1, 2], None, 1, (2,)),
    ],
)
def test_the_live_version_and_the_newest_others_are_kept(
    versions: list[int], live: int | None, keep: int, kept: tuple[int, ...]
) -> None:
    assert choose(versions, live, keep) == (kept, tuple(sorted(set(versions) - set(kept))))


def test_prune_removes_files_and_keeps_the_record(four: Path) -> None:
    result = prune("m", four)
    assert (result.kept, result.removed) == ((3, 4), (1, 2))
    assert seen(four) == ([3, 4], [3, 4])
    assert states(four) == {1: "pruned", 2: "pruned", 3: "superseded", 4: "live"}
    assert prune("m", four).removed == ()
    with pytest.raises(InputError, match="no model 'other' in the repository"):
        prune("other", four)


def test_deploy_keeps_as_many_as_it_is_told_and_says_it(four: Path, other_bundle: Path) -> None:
    result = deploy(other_bundle, "m", four, keep=2)
    assert "removed: version 1, 2, 3 (--keep 2)" in result.notes
    assert seen(four) == ([4, 5], [4, 5])


def test_a_bundle_without_parity_is_refused_unless_the_user_says_so(
    bundle: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    repository = tmp_path / "repository"
    done = run_bertmp("deploy", bundle, "--name", "m", "--repository", repository)
    assert (done.returncode, done.stdout) == (1, "")
    assert "parity was never run on the bundle" in done.stderr
    assert "--allow-unverified" in done.stderr
    assert not repository.exists()
    done = run_bertmp("deploy", bundle, "--name", "m", "--repository", repository, "--allow-unverified")
    assert done.returncode == 0, done.stderr
    (record,) = models(repository)
    assert (record.parity_verdict, record.accepted) == ("not checked", "not checked")
    with pytest.raises(GateFailed):
        bertmp.deploy(bundle, "m", repository)
    assert [entry["outcome"] for entry in read_audit(repository)] == ["done", "done", "refused"]


def test_every_step_is_on_record(four: Path) -> None:
    rollback("m", four, to=3)
    prune("m", four, keep=1)
    entries = list(read_audit(four))
    steps = [(entry["action"], entry["step"], entry["version"]) for entry in entries]
    deployed = [("deploy", step, n + 1) for n in range(VERSIONS) for step in ("staged", "promoted")]
    removed = [("prune", "removed", version) for version in (1, 2, 4)]
    assert steps == [*deployed, ("rollback", "switched", 3), *removed]
    assert {entry["outcome"] for entry in entries} == {"done"}
    assert all(entry["user"] and entry["model"] == "m" for entry in entries)
    staged = entries[0]
    assert (staged["verdict"], staged["accepted"]) == ("not checked", "not checked")
    assert len(staged["fingerprint"]) == len(staged["manifest"]) == 64
    assert [entry["time"] for entry in entries] == sorted(entry["time"] for entry in entries)


def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, "m", "deploy")
    audit.write("staged", "done", 1)
    with (tmp_path / AUDIT).open("ab") as stream:
        stream.write('{"time": "2026-01-01", "model": "ü'.encode()[:-1])
    audit.write("promoted", "refused", 1, reason="two\nlines")
    assert [entry["step"] for entry in read_audit(tmp_path)] == ["staged", "promoted"]
    assert len((tmp_path / AUDIT).read_bytes().splitlines()) == 3


def test_the_commands(four: Path, run_bertmp: RunBertmp) -> None:
    done = run_bertmp("rollback", "m", "--repository", four, "--to", "2", "--json")
    assert json.loads(done.stdout)["version"] == 2
    done = run_bertmp("prune", "m", "--repository", four, "--keep", "2")
    assert done.stdout.strip() == "m: removed 1, 3, kept 2, 4"
    done = run_bertmp("prune", "m", "--repository", four, "--keep", "0")
    assert done.returncode == 2
