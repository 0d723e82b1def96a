"""What a version of a text model runs: our code, and the library that stock containers lack."""

from __future__ import annotations

import platform
import shutil
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from bertmp.core.io import sha256_file
from bertmp.serve.server_config import BACKENDS

LIBRARIES = "lib"
"""The folder in a text model's version with the packages that a stock Triton container lacks."""

_CONTAINER = ("linux", "x86_64")
"""The platform of the Triton containers whose releases the table has."""

TEXT_CODE = BACKENDS / "text_model"
"""The folder of the text model's code."""


def code_files() -> dict[str, str]:
    """The files of the text model's code, those of the answers among them, and the SHA-256 of each."""
    found = sorted((*TEXT_CODE.glob("*.py"), *TEXT_CODE.glob("*/*.py")))
    return {path.relative_to(TEXT_CODE).as_posix(): sha256_file(path) for path in found}


def copy_code(folder: Path) -> None:
    """Copies the code into a version's folder."""
    for name in code_files():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(TEXT_CODE / name, folder / name)


def missing_libraries() -> str:
    """Why a text model is deployed without the libraries for Triton's container; empty where with them."""
    tags = metadata.distribution("tokenizers").read_text("WHEEL") or ""
    if (sys.platform, platform.machine()) == _CONTAINER and "-abi3-manylinux" in tags:
        return ""
    here = f"{sys.platform} {platform.machine()}"
    return (
        f"the tokenizers installed here are for {here}, so the version has none for Triton's container "
        f"({' '.join(_CONTAINER)}): install tokenizers=={metadata.version('tokenizers')} in it"
    )


def copy_tokenizers(folder: Path) -> None:
    """Copies the installed tokenizers, which every Python from 3.10 on loads, and the package's licence."""
    package = metadata.distribution("tokenizers")
    files = [file for file in package.files or () if file.suffix in (".py", ".so") or file.name == "METADATA"]
    for file in files:
        target = folder / str(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file.locate()), target)
    with suppress(metadata.PackageNotFoundError):  # a plain checkout
        ours = metadata.distribution("bertmp").files or ()
        for file in [file for file in ours if file.name == "LICENSE"][:1]:
            shutil.copyfile(str(file.locate()), folder / "LICENSE")  # Apache 2.0, as tokenizers is
