"""Exceptions as messages: what the user can do is said, and nothing prints a traceback unasked."""

from __future__ import annotations

import errno
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sana_edge.runtime.errors import FormatError, GateError, InputError, UsageError
from sana_edge.tools import cli
from sana_edge.tools.failures import explain


def _allocate() -> None:
    torch.empty(1 << 50)


def _raise(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "words", "code"),
    [
        (_raise(InputError("Bad", where="x", fix="do y")), "Bad\n  where: x\n  fix: do y", 1),
        (_raise(FormatError("Bad")), "Bad", 1),
        (_raise(UsageError("Bad")), "Bad", 2),
        (_raise(GateError("Bad")), "Bad", 3),
        (_raise(KeyboardInterrupt()), "interrupted", 130),
        (_raise(MemoryError()), "Memory is too small", 1),
        (_raise(torch.OutOfMemoryError("CUDA out of memory.")), "Memory is too small", 1),
        (_allocate, "Memory is too small", 1),
        (_raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/file")), "where: /out/file", 1),
        (_raise(RuntimeError("I/O error: No space left on device (os error 28)")), "The disk is full", 1),
        (_raise(ZeroDivisionError("division by zero")), "run again with -v", 1),
        (_raise(PermissionError(errno.EACCES, "Permission denied", "x")), "Permission denied", 1),
    ],
)
@pytest.mark.parametrize("verbose", [False, True])
def test_every_failure_has_a_message_and_a_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    act: Callable[[], None],
    words: str,
    code: int,
    verbose: bool,
) -> None:
    def run(options: Namespace, say: Any) -> dict[str, Any]:
        act()
        return {}

    monkeypatch.setattr(cli, "run_verb", run)
    assert cli.main(["doctor", *(["-v"] if verbose else [])]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert ("Traceback" in captured.err) is verbose
    assert captured.out == ""


def test_disk_that_is_really_full_is_recognised() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left") as raised, full.open("w") as file:
        file.write("x")
        file.flush()
    assert explain(raised.value)[0].startswith("The disk is full")
