"""The fixtures that the benchmarks' tests share with export's."""

from __future__ import annotations

from tests.export.conftest import questions

__all__ = ["questions"]
