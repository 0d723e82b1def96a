"""What the Triton environment is made of, fixed to the byte.

All of it runs on Python 3.10 to 3.13 for Linux on x86-64. numpy stays below 2: the server's Python
backend was built against numpy 1, and numpy 2 corrupts its tensors without an error. numpy 1 has no
wheels for Python 3.13: there it is built from its source, which takes minutes and a C compiler, so that
any older Python on the machine is taken instead.
"""

from __future__ import annotations

from bertmp.environment.wheels import Wheel

PYTHONS = ((3, 12), (3, 11), (3, 10))
"""The Pythons that have wheels of everything, best first."""

PYTHON_WITHOUT_NUMPY = (3, 13)
"""The last resort: numpy is built for it."""

SERVER_VERSION = "2.51.0"
"""The Triton server inside the wheel."""

SERVER = Wheel(
    "nvidia-pytriton",
    "0.7.0",
    "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl",
    "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
)

VERSIONS = {"numpy": "1.26.4", "onnxruntime": "1.23.2", "tokenizers": "0.23.3"}
"""What the backends import, beside the server."""

HASHES = {
    "numpy": (
        "ffa75af20b44f8dba823498024771d5ac50620e6915abac414251bd971b4529f",  # Python 3.10
        "666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5",  # 3.11
        "675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed",  # 3.12
        "2a02aba9ed12e4ac4eb3ea9421c420301a0c6460d9830d74a9df87efa4912010",  # the source
    ),
    "onnxruntime": (
        "4ca88747e708e5c67337b0f65eed4b7d0dd70d22ac332038c9fc4635760018f7",  # Python 3.10
        "da44b99206e77734c5819aa2142c69e64f3b46edc3bd314f6a45a932defc0b3e",  # 3.11
        "0f9b4ae77f8e3c9bee50c27bc1beede83f786fe1d52e99ac85aa8d65a01e9b77",  # 3.12
        "8bace4e0d46480fbeeb7bbe1ffe1f080e6663a42d1086ff95c1551f2d39e7872",  # 3.13
    ),
    "tokenizers": ("376851d22bcf9d650a5c3090bb83e6cf9e895fbf0595369fa4cd43c1f69b5f87",),  # all of them
}
"""SHA-256 of the packages' files; one that is not listed here is refused."""


def requirements() -> str:
    """The pins as a requirements file in pip's hash-checking mode."""
    lines = [
        f"{name}=={version} " + " ".join(f"--hash=sha256:{digest}" for digest in HASHES[name])
        for name, version in VERSIONS.items()
    ]
    return "\n".join(lines) + "\n"
