"""Files written completely or not at all, their SHA-256, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bertmp.core.errors import DiskFull, InputError, MissingComponent


def plain(value: Any) -> Any:
    """Values as JSON has them: tuples as lists; paths and the like, infinity and NaN as text."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # numbers are read from this text, too
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


class JsonSerializable:
    """A base of dataclasses whose JSON is their attributes."""

    def to_json(self) -> dict[str, Any]:
        return dict(plain(asdict(self)))  # type: ignore[call-overload]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(error: OSError, target: Path) -> InputError | None:
    """The one line for a disk that does not take the file; None where the error is another.

    A full disk names no file. The others do, and one outside the target's folder is not about writing.
    """
    number = _number(error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("no space left on the disk", target, "free some space or choose another folder")
    if number == errno.EFBIG:
        return DiskFull("a file would exceed the limit on its size", target, "raise it ('ulimit -f')")
    if isinstance(error.filename, str) and not _concerns(Path(error.filename), target):
        return None
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError("the folder cannot be written", target, "choose one that you may write to")
    if number in (errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
        return InputError(
            "a file stands where a folder is needed", target, "move it or choose another folder"
        )
    return None


def _number(error: OSError) -> int | None:
    """The error's number. `shutil.copytree` gathers the errors of its files and keeps their texts alone."""
    if not isinstance(error, shutil.Error):
        return error.errno
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
    return next((number for number in numbers if os.strerror(number) in str(error)), None)


def _concerns(path: Path, target: Path) -> bool:
    """Whether `path` lies beside or in `target`, or is a folder on the way to it."""
    path, target = path.absolute(), target.absolute()
    return path.is_relative_to(target.parent) or target.is_relative_to(path)


@contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one clear line about `target`.

    Raises:
        DiskFull: it is full, or a limit is reached.
        InputError: the disk is read-only, the folder may not be written, or a file stands where a folder is
            needed. Every other OSError passes.
    """
    try:
        yield
    except (OSError, InputError) as error:
        # An InputError is a nested call's, whose target may be a temporary file in ours.
        cause = error if isinstance(error, OSError) else error.__cause__
        refusal = _refusal(cause, target) if isinstance(cause, OSError) else None
        if refusal is None:
            raise
        raise refusal from cause


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`, which becomes `target` when the block ends without an error.

    The file is flushed to the disk before the rename and its folder after it, so that a crash leaves
    either the old file or the new one.
    """
    target = Path(target)
    with writing_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            _sync(temporary)
            os.replace(temporary, target)
            _sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, which takes the place of `target` when the block ends well.

    An existing `target` is moved aside first and removed last: at no moment is there a half-filled one.
    """
    target = Path(target)
    with writing_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            for path in temporary.rglob("*"):
                if path.is_file():
                    _sync(path)
            _sync(temporary)
            swap_in(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def swap_in(folder: Path, target: Path) -> None:
    """Moves a complete `folder` to `target`, replacing what stood there."""
    if os.path.lexists(target):
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
        try:
            os.replace(target, aside / "old")
            os.replace(folder, target)
        except BaseException:  # an interrupt too: the old folder goes back before it is lost
            if not os.path.lexists(target):
                os.replace(aside / "old", target)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(folder, target)
    _sync(target.parent)


def write_text(target: Path, text: str) -> None:
    """Writes `text` as UTF-8, completely or not at all."""
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Writes `value` as indented JSON, completely or not at all."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_toml(target: Path, values: Mapping[str, Any]) -> None:
    """Writes settings as a flat TOML table, completely or not at all; those that are None are left out.

    Args:
        values: text, numbers, truth values, paths, and sequences of these.

    Raises:
        MissingComponent: tomli-w is not installed, as on a machine that only trains.
    """
    try:
        import tomli_w
    except ImportError as error:
        raise MissingComponent("tomli-w is not installed", target, "pip install tomli-w") from error
    plain = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if value is not None
    }
    write_text(target, tomli_w.dumps(plain))


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: it is missing, not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("no such file", path, "check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError("not a JSON file", path, f"fix or replace it ({error})") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        InputError: it is missing, not UTF-8 or not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("no such file", path, "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("not a TOML file", path, f"fix it ({error})") from error


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, made with its folder: of two processes, the second waits.

    Raises:
        InputError: the folder cannot be made or written.
    """
    from filelock import FileLock

    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def home() -> Path:
    """`BERTMP_HOME`, or `bertmp` in the platform's user cache folder. It is not created here."""
    if chosen := os.environ.get("BERTMP_HOME"):
        return Path(chosen).expanduser()
    try:
        from platformdirs import user_cache_path
    except ImportError:  # on a machine that only trains
        return Path.home() / ".cache" / "bertmp"
    return user_cache_path("bertmp")
