"""Starts a process with arguments that no other user of the machine can read.

`/proc/PID/cmdline`, which `ps` shows, is readable by everybody; `/proc/PID/environ` by the same user alone.
Triton takes its keys as arguments only. So the true arguments travel in the environment, and before the
program's first instruction its pointers to the arguments are turned to them.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

_TRACEME, _DETACH = 0, 17
_POINTER = struct.calcsize("P")
_START_STACK = 28
"""The field of /proc/PID/stat with the address of the arguments' count and pointers (man 5 proc)."""
_AFTER_NAME = 3
"""The first field behind the process's name, which may hold spaces."""


class CannotHide(Exception):
    """The system does not let a parent change its child before that runs."""


def start_hidden(
    command: Sequence[str], hidden: Mapping[str, str], env: Mapping[str, str], **popen: Any
) -> subprocess.Popen[str]:
    """Starts a program that gets other arguments than `ps` shows.

    Args:
        command: the program, a binary, and its arguments as `ps` shows them.
        hidden: an argument in `command` → what the program gets in its place.
        env: the program's environment, not empty.
        popen: for `subprocess.Popen`.

    Raises:
        CannotHide: the system does not allow it; nothing runs then.
    """
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace  # looked up here: little is safe between fork and exec
    turned = [number for number, argument in enumerate(command) if argument in hidden]
    carried = {f"BERTMP_ARGUMENT_{number}": hidden[command[number]] for number in turned}

    def stop_at_first_instruction() -> None:
        if ptrace(_TRACEME, 0, 0, 0) != 0:
            raise OSError

    try:
        process: subprocess.Popen[str] = subprocess.Popen(
            list(command), env={**env, **carried}, preexec_fn=stop_at_first_instruction, **popen
        )
    except subprocess.SubprocessError as error:
        raise CannotHide("ptrace is not allowed") from error
    try:
        _, status = os.waitpid(process.pid, 0)
        if not os.WIFSTOPPED(status):
            raise CannotHide("the program ended before it began")
        with Path(f"/proc/{process.pid}/mem").open("r+b", buffering=0) as memory:
            _turn_pointers(memory, _start_stack(process.pid), list(command), turned, len(env))
        if ptrace(_DETACH, process.pid, 0, 0) != 0:
            raise CannotHide("the program cannot be let go")
    except BaseException as error:
        process.kill()
        process.wait()
        if isinstance(error, OSError):
            raise CannotHide(str(error)) from error
        raise
    return process


def _start_stack(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[_START_STACK - _AFTER_NAME])


def _turn_pointers(
    memory: BinaryIO, stack: int, command: list[str], turned: list[int], variables: int
) -> None:
    """Turns the pointers to some arguments to the values of the last variables of the environment.

    What lies at `stack` is the number of arguments, their pointers, a null pointer, those of the environment
    and a null pointer.

    Args:
        turned: the arguments' numbers; each has its variable, in this order.
        variables: how many there are before those.
    """

    def read(count: int, index: int) -> tuple[int, ...]:
        memory.seek(stack + index * _POINTER)
        return struct.unpack(f"{count}P", memory.read(count * _POINTER))

    def write(index: int, pointer: int) -> None:
        memory.seek(stack + index * _POINTER)
        memory.write(struct.pack("P", pointer))

    environment = 1 + len(command) + 1
    if read(1, 0) != (len(command),) or read(1, environment - 1) != (0,):
        raise CannotHide("the program does not get its arguments as they are")
    first, *_ = read(1, environment)
    for place, number in enumerate(turned, environment + variables):
        (variable,) = read(1, place)
        value = variable + len(f"BERTMP_ARGUMENT_{number}=")
        memory.seek(value - 1)
        if memory.read(1) != b"=":
            raise CannotHide("the program does not get its environment as it is")
        write(1 + number, value)
        # Not a null pointer: the program looks for more of its start-up data behind the first one.
        write(place, first)
