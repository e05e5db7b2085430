"""`python tools/dev.py demo|test|lint`: from a fresh machine with Python and pip to a result, in one command.

Makes or reuses `.venv` in the repository, installs what is needed when something changed, and runs. Standard library
only, and no syntax newer than Python 3.6 at the top, so that an old Python can still say that it is too old.
"""

import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        "sana-edge needs Python 3.11, 3.12 or 3.13; this is {}.{} ({})".format(*sys.version_info[:2], sys.executable)
    )

import argparse
import hashlib
import os
import shutil
import subprocess
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
STAMP = VENV / ".sana-edge-installed"
EXTRAS = "quantize,export,rtx,report,dev"
PACKAGES = ("runtime", "calibration_data", "quantize", "export", "tools")


def main(arguments: Sequence[str]) -> int:
    """Installs if needed and runs one command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="dev.py", description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("command", choices=COMMANDS, help="what to run")
    options, rest = parser.parse_known_args(arguments)
    os.chdir(ROOT)
    install()
    return COMMANDS[options.command](rest)


def install() -> None:
    """Brings `.venv` to what pyproject.toml and the constraints ask for; nothing when neither changed."""
    runtime = "onnxruntime-gpu" if has_nvidia_gpu() else "onnxruntime"
    wanted = fingerprint(runtime)
    if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists():
        return
    start = time.monotonic()
    if not PYTHON.exists() or venv_version() != sys.version_info[:2]:
        step("making .venv")
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    STAMP.unlink(missing_ok=True)
    step(f"installing sana-edge[{EXTRAS}] and {runtime}")
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "--editable", f".[{EXTRAS}]", runtime, "--constraint", CONSTRAINTS]
    if subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, check=False).returncode:
        sys.exit("dev.py: the installation failed; pip says why above")
    STAMP.write_text(wanted)
    step(f"installed in {time.monotonic() - start:.0f} s")


def fingerprint(runtime: str) -> str:
    """What the installation depends on; another value installs again."""
    digest = hashlib.sha256(f"{sys.version_info[:3]} {runtime} {EXTRAS} {ROOT}".encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def has_nvidia_gpu() -> bool:
    """Whether nvidia-smi lists a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    listed = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def venv_version() -> "tuple[int, ...] | None":
    """Major and minor version of the Python in `.venv`; None where it does not run."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(map(int, answer.stdout.split()))


def link_for_mypy() -> None:
    """mypy reads no editable install: a git-ignored link shows it the folders as the package `sana_edge`."""
    link = ROOT / "build" / "typing" / "sana_edge"
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("..") / "..", target_is_directory=True)


def demo(rest: Sequence[str]) -> int:
    """The whole chain on the nano model."""
    return run("-m", "sana_edge.tools.cli", "demo", *rest)


def lint(rest: Sequence[str]) -> int:
    """Format, lint and types. All run, so that one call shows all there is to mend."""
    link_for_mypy()
    types = [argument for package in PACKAGES for argument in ("-p", f"sana_edge.{package}")]
    checks = {
        "ruff format": ("-m", "ruff", "format", "--check", "."),
        "ruff check": ("-m", "ruff", "check", "."),
        "mypy": ("-m", "mypy", *types),
    }
    failed = []
    for name, command in checks.items():
        step(name)
        if run(*command):
            failed.append(name)
    if failed:
        step(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def test(rest: Sequence[str]) -> int:
    """Lint, then the tests; further arguments go to pytest."""
    linted = lint(())
    step("pytest")
    tested = run("-m", "pytest", *rest)
    if linted:
        step("the tests ran, but lint failed above")
    return tested or linted


def run(*arguments: str) -> int:
    """Runs the Python of `.venv`; Ctrl-C belongs to the child, which tidies up and ends."""
    child = subprocess.Popen([str(PYTHON), *arguments])
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


def step(text: str) -> None:
    """Says on stderr what comes next."""
    print(f"== {text}", file=sys.stderr, flush=True)


COMMANDS: "dict[str, Callable[[Sequence[str]], int]]" = {"demo": demo, "test": test, "lint": lint}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
