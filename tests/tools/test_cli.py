"""The command line as a person meets it: as a process, with wrong input, Ctrl-C and a full disk."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sana_edge.tools.verbs import VERBS

CLI = (sys.executable, "-m", "sana_edge.tools.cli")
CALIBRATE = ("calibrate", "nano", "--samples", "1", "--frames", "5", "--height", "64", "--width", "64")


def sana_edge(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *arguments], capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("verb", [None, *(v.name for v in VERBS)])
def test_help_answers_at_once_without_torch(verb: str | None) -> None:
    code = (
        "import sys\n"
        "from sana_edge.tools.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(sorted(m for m in ('torch', 'numpy', 'diffusers') if m in sys.modules))"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *([verb] if verb else []), "--help"], capture_output=True, text=True, check=False
    )
    assert time.perf_counter() - start < 1
    assert done.returncode == 0
    assert done.stdout.startswith("usage: sana-edge")
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "VERB"),
        (("quantise",), "invalid choice: 'quantise'"),
        (("quantize", "nano"), "--recipe"),
        (("calibrate", "nano", "--out", "x", "--samples", "0"), "--samples"),
        (("report", "--reference", "nano", "--candidate", "nano", "--out", "x"), "one name"),
        (("generate", "nano", "--prompt", "a", "--out", "a.mp4", "--seconds", "2", "--frames", "33"), "given twice"),
        (("calibrate", "nano", "--out", "x", "--frames", "33"), "all three"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = sana_edge(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", "missing"), "Not an artefact"),
        (("quantize", "missing", "--recipe", "bf16", "--out", "x"), "No such checkpoint"),
        (("quantize", "nano", "--recipe", "nvpf4", "--out", "x"), "nvfp4"),
        (("quantize", "nano", "--recipe", "wrong.toml", "--out", "x"), "blocks.*.attn1.to_qkv"),
        ((*CALIBRATE[:-1], "65", "--out", "x"), "does not divide"),
        ((*CALIBRATE, "--prompts", "missing.jsonl", "--out", "x"), "missing.jsonl"),
        ((*CALIBRATE, "--device", "cuda:9", "--out", "x"), "cuda:9"),
        (("generate", "nano", "--prompt", " ", "--out", "a.mp4"), "Prompt is empty"),
        (("generate", "nano", "--prompt", "a cat", "--out", "a.gif"), ".mp4"),
        (("generate", "nano", "--prompt", "a cat", "--image", "missing.png", "--out", "a.mp4"), "missing.png"),
        (("report", "--reference", "nano", "--candidate", "missing", "--out", "x"), "missing"),
        (("build", "missing", "--target", "rtx5090", "--out", "x"), "missing"),
    ],
)
def test_wrong_input_exits_with_1_and_says_what_to_do(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    recipe = tmp_path / "wrong.toml"
    recipe.write_text('[[layers]]\npattern = "blocks.*.attn1.to_qvk"\nformat = "fp8"\n')
    done = sana_edge(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    [line] = done.stdout.splitlines()
    answer = json.loads(line)
    assert (answer["ok"], answer["error"]["exit_code"]) == (False, 1)
    assert list(tmp_path.iterdir()) == [recipe]


def test_doctor_ends_with_one_json_line(tmp_path: Path) -> None:
    done = sana_edge("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0
    [line] = done.stdout.splitlines()
    answer = json.loads(line)
    assert answer["ok"] and {"machine", "tools", "abilities"} <= answer.keys()
    assert {tool["name"]: tool["problem"] for tool in answer["tools"]}["torch"] is None
    prose = sana_edge("doctor", cwd=tmp_path)
    assert prose.stdout.rstrip() == done.stderr.rstrip()


@pytest.fixture
def interrupted(tmp_path: Path) -> Iterator[Callable[[float], tuple[int, str]]]:
    """Starts a calibration of many steps, sends SIGINT once its temporary folder stands, and waits for the end."""
    with subprocess.Popen(
        [*CLI, *CALIBRATE, "--steps", "500", "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    ) as process:

        def interrupt(after: float) -> tuple[int, str]:
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob(".out.partial-*")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(after)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            return process.returncode, errors

        yield interrupt
        process.kill()


@pytest.mark.parametrize("after", [0, 4])
def test_ctrl_c_leaves_nothing_behind(
    tmp_path: Path, interrupted: Callable[[float], tuple[int, str]], after: float
) -> None:
    code, errors = interrupted(after)
    assert (code, errors.strip()) == (130, "interrupted")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_one_clear_message(small_disk: Path) -> None:
    done = sana_edge(*CALIBRATE, "--steps", "1", "--out", str(small_disk / "out"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "space" in done.stderr and "fix: free space" in done.stderr
    assert list(small_disk.iterdir()) == []


def test_file_size_limit_is_one_clear_message(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    done = sana_edge(*CALIBRATE, "--steps", "1", "--out", str(tmp_path / "out"), preexec_fn=limit)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "fix: free space" in done.stderr
    assert list(tmp_path.iterdir()) == []
