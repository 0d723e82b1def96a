"""The documents name only files, options and Python objects that exist; the example runs."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

from bertmp.cli.app import COMMANDS
from bertmp.core.options import declared_options

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for path in (
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/**/*.md"),
        *REPOSITORY.glob("benchmarks/*.md"),
    )
    if path.name != "CHANGELOG.md"  # names what no longer exists
)
REFERENCE = (REPOSITORY / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
OTHER_TOOLS = {
    "--nproc-per-node", "--standalone", "--nnodes", "--max-restarts", "--rdzv-backend", "--rdzv-id",
    "--rdzv-endpoint", "--ntasks-per-node", "--backend-config", "--json", "--config", "--help", "--debug",
    "--quick", "--only", "--seeds", "--threads", "--graph", "--tool", "--model",
    "--rm", "--gpus", "--shm-size", "--model-repository", "--model-control-mode", "--load-model",
    "--disable-auto-complete-config", "--strict-readiness",
}  # fmt: skip
"""Options of torchrun, Slurm, Docker, Triton, of every command, and of the benchmarks."""


def load(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_links_lead_to_files(tmp_path: Path) -> None:
    assert load(REPOSITORY / "scripts" / "docs.py").collect(tmp_path / "docs") == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_documents_named_source_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:bertmp|export|serve|tests|scripts|examples|benchmarks)/[\w/.-]+)`", text)
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_documents_named_options_exist(document: Path) -> None:
    text = re.sub(r"Formerly `[^`]*`", "", document.read_text(encoding="utf-8"))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - OTHER_TOOLS
    current = set(re.findall(r"--[a-z][a-z0-9-]+", re.sub(r"Formerly `[^`]*`", "", REFERENCE)))
    assert named - current == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_documents_named_python_objects_exist(document: Path) -> None:
    named = re.findall(r"(?:`|::: |from )(bertmp(?:\.[A-Za-z_]\w*)+)", document.read_text(encoding="utf-8"))
    missing = []
    for name in set(named):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert missing == []


def test_changelog_renamed_options_are_listed() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    unlisted = []
    for command, function, _ in COMMANDS:
        for option in declared_options(get_type_hints(function)["options"]):
            former = f"--{option.info.formerly.replace('_', '-')}"
            if option.info.formerly and former != option.flag:
                row = rf"^\|[^|]*`{command}`[^|]*\| `{former}` \| `{option.flag}` \|$"
                if not re.search(row, changelog, re.MULTILINE):
                    unlisted.append(f"{command} {former} → {option.flag}")
    assert unlisted == []


@pytest.mark.slow
def test_example_end_to_end_passes_parity(minilm: Path, trec: Path, tmp_path: Path) -> None:
    example = load(REPOSITORY / "examples" / "train_to_parity.py")
    report = example.main(tmp_path, steps=20, examples=20)
    assert report.passed, report.failed_gates
