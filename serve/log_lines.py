"""Log lines as JSON objects: Triton's, its workers' and ours."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone

_TRITON = re.compile(r"([IWEF])(\d\d)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{6}) (\d+) ([\w.-]+:\d+)\] (.*)")
"""Level, month, day, time, thread, place in the sources, message."""
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "fatal"}


def to_json(line: str) -> str:
    """A log line as one JSON object: `time` (ISO 8601, UTC), `level`, `source`, `message`."""
    if match := _TRITON.fullmatch(line):
        level, *_, place, message = match.groups()
        level, source, message = _LEVELS[level], f"triton {place}", _unquoted(message)
    else:
        ours = line.partition(":")[0] in ("watchdog", "warning")
        level, source, message = ("warning", "bertmp", line) if ours else ("info", "triton", line)
    entry = {"time": _now(), "level": level, "source": source, "message": message}
    return json.dumps(entry, ensure_ascii=False)


def _now() -> str:
    """The time of the line's arrival: Triton's own has neither year nor zone."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _unquoted(message: str) -> str:
    """A message without the quotation marks and escapes that Triton puts round some."""
    if message.startswith('"') and message.endswith('"') and len(message) > 1:
        try:
            return str(json.loads(message))
        except ValueError:
            return message[1:-1]
    return message
