"""What is known of a Triton version's vulnerabilities."""

from __future__ import annotations

from packaging.version import InvalidVersion, Version

FIXED_IN, FIXED_RELEASE = "2.59.0", "25.07"
"""The first server version without the vulnerabilities below, and its release."""

CVES = ("CVE-2025-23310", "CVE-2025-23311", "CVE-2025-23319", "CVE-2025-23320", "CVE-2025-23334")
"""NVIDIA's security bulletins for Triton, August 2025: whoever reaches a port may crash the server, read its
memory or run code in it."""


def vulnerabilities(version: str) -> tuple[str, ...]:
    """The known vulnerabilities of a server version, e.g. `2.51.0`; all of them where it is not a version."""
    try:
        return CVES if Version(version) < Version(FIXED_IN) else ()
    except InvalidVersion:
        return CVES
