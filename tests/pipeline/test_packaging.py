"""The wheel holds every package under its import name and nothing else; a plain install works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = {"bertmp": "bertmp", "export": "bertmp/export", "serve": "bertmp/serve"}
"""Folder in the repository → folder in the wheel."""


def run(*command: object, cwd: Path) -> str:
    """The standard output of a command, run without this checkout on PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that no older build is packed with them."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(
            REPOSITORY / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = ("build", "--wheel", "--no-isolation", "--outdir", built)
    run(sys.executable, "-m", *build, source, cwd=source)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def fresh_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python in a new environment with the wheel installed; it sees our dependencies only."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, *install, wheel, cwd=folder)
    # Folders named in a .pth file come last on the path, and .pth files inside them are not read: the
    # editable install of this checkout stays out.
    (site,) = folder.glob("lib/python3.*/site-packages")
    borrowed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    return python


def test_every_source_file_is_in_the_wheel(wheel: Path) -> None:
    packed = set(ZipFile(wheel).namelist())
    sources = set()
    for folder, packed_as in FOLDERS.items():
        links = {
            path for path in (REPOSITORY / "bertmp").iterdir() if path.is_symlink()
        }  # folders of their own
        for root, _, files in os.walk(REPOSITORY / folder, followlinks=True):
            if "__pycache__" in root or any(Path(root).is_relative_to(link) for link in links):
                continue
            packed_in = f"{packed_as}/{Path(root).relative_to(REPOSITORY / folder).as_posix()}".removesuffix(
                "/."
            )
            sources |= {f"{packed_in}/{name}" for name in files if name[0] != "."}
    assert sources - packed == set()
    assert {name for name in packed if ".dist-info/" not in name} - sources == set()


def test_the_wheel_has_one_top_level_name(wheel: Path) -> None:
    with ZipFile(wheel) as opened:
        tops = {name.split("/")[0] for name in opened.namelist()}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"bertmp"}
        # Real files, not links: a link would be packed as a short file that names its target.
        source = REPOSITORY / "export" / "__init__.py"
        assert opened.read("bertmp/export/__init__.py") == source.read_bytes()


def test_wheel_holds_type_marker_and_package_data(wheel: Path) -> None:
    """`py.typed` tells type checkers that the package has annotations (PEP 561)."""
    packed = set(ZipFile(wheel).namelist())
    assert "bertmp/py.typed" in packed
    assert "bertmp/report/parity.html.j2" in packed


def test_plain_install_imports_every_package(fresh_python: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util, json, bertmp, bertmp.export, bertmp.serve, bertmp.cli.app\n"
        "packages = [bertmp, bertmp.export, bertmp.serve]\n"
        "tops = [name for name in ('export', 'serve') if importlib.util.find_spec(name)]\n"
        "print(json.dumps({'files': [package.__file__ for package in packages], 'tops': tops}))"
    )
    found = json.loads(run(fresh_python, "-c", code, cwd=tmp_path))
    assert found["tops"] == []
    for file in found["files"]:
        assert Path(file).is_relative_to(fresh_python.parents[1])


def test_a_plain_install_has_the_command(fresh_python: Path, tmp_path: Path) -> None:
    out = run(fresh_python.parent / "bertmp", "--help", cwd=tmp_path)
    assert "doctor" in out
    assert run(fresh_python, "-m", "bertmp", "--version", cwd=tmp_path).startswith("bertmp ")


def test_every_public_name_leads_somewhere(fresh_python: Path, tmp_path: Path) -> None:
    code = "import bertmp\nfor name in bertmp.__all__: assert getattr(bertmp, name) is not None, name\n"
    run(fresh_python, "-c", code, cwd=tmp_path)


def test_import_contracts_see_every_module_through_the_links() -> None:
    """import-linter sees what its graph holds; a module missing there would never break a contract."""
    grimp = pytest.importorskip("grimp", reason="import-linter is not installed")
    modules = grimp.build_graph("bertmp").modules
    for folder, packed_as in FOLDERS.items():
        name = packed_as.replace("/", ".")
        for path in (REPOSITORY / folder).glob("*.py"):
            expected = name if path.stem == "__init__" else f"{name}.{path.stem}"
            assert expected in modules


def test_make_clean_keeps_deployed_versions(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    version = tmp_path / "model_repository/trec/1/model.py"
    built = tmp_path / "build/wheel"
    for file in (version, built):
        file.parent.mkdir(parents=True)
        file.write_text("")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert version.is_file()
    assert not built.parent.exists()
