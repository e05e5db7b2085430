"""From any exception to what a user reads: a message without a traceback, and an exit code."""

from __future__ import annotations

import errno
from typing import Any

from ..runtime.errors import SanaEdgeError

INTERRUPTED = 130
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: BaseException) -> tuple[str, int]:
    """The message for an exception and the exit code: 1 unless the error says otherwise, 130 for Ctrl-C."""
    if isinstance(error, SanaEdgeError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if _is_disk_full(error):
        where = f"\n  where: {filename}" if (filename := getattr(error, "filename", None)) else ""
        return f"The disk is full\n  got: {_one_line(error)}{where}\n  fix: free space or choose another --out", 1
    if _is_out_of_memory(error):
        fix = "choose fewer frames, a smaller size or fewer samples, or close other programs"
        return f"Memory is too small\n  got: {_one_line(error) or 'no memory left'}\n  fix: {fix}", 1
    name = type(error).__name__
    return f"Unexpected {name}: {_one_line(error)}\n  fix: run again with -v and report the traceback", 1


def fields(error: BaseException) -> dict[str, Any]:
    """An exception for the JSON line: its kind, its message and, where it has them, its fields."""
    message, code = explain(error)
    known = {name: getattr(error, name, None) for name in ("where", "expected", "got", "fix")}
    named = {name: str(value) for name, value in known.items() if isinstance(error, SanaEdgeError) and value}
    what = error.what if isinstance(error, SanaEdgeError) else message.splitlines()[0]
    return {"type": type(error).__name__, "what": what, **named, "exit_code": code}


def _is_disk_full(error: BaseException) -> bool:
    """Whether the disk refused. safetensors and others wrap the operating system's error in their own."""
    text = str(error)
    return getattr(error, "errno", None) in _DISK_FULL or any(
        mark in text for mark in ("No space left on device", "File too large", "os error 28", "os error 27")
    )


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's error, torch's for a GPU, or torch's CPU allocator (a plain RuntimeError)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
