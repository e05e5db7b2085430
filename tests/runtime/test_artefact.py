"""Stage folders: whole or absent, tied to their parents, found again by their inputs."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sana_edge.runtime.artefact import MANIFEST, link_tree, parent_digest, read_manifest, run_stage
from sana_edge.runtime.errors import ArtefactError, InputError


@pytest.fixture
def payload() -> bytes:
    return secrets.token_bytes(4096)


def make(out: Path, payload: bytes, calls: list | None = None, force: bool = False, **inputs: object):
    def produce(folder: Path) -> dict:
        if calls is not None:
            calls.append(folder)
        (folder / "sub").mkdir()
        (folder / "sub" / "data.bin").write_bytes(payload)
        return {"answer": 42}

    return run_stage(out, "export", inputs, produce, force=force)


def test_same_inputs_are_not_computed_twice_and_other_inputs_are_not_overwritten(tmp_path, payload):
    calls: list = []
    first = make(tmp_path / "a", payload, calls, recipe="fp8")
    again = make(tmp_path / "a", payload, calls, recipe="fp8")
    assert first == again and len(calls) == 1
    with pytest.raises(InputError, match="another artefact"):
        make(tmp_path / "a", payload, calls, recipe="int8")
    assert make(tmp_path / "a", payload, calls, force=True, recipe="int8").inputs == {"recipe": "int8"}
    assert len(calls) == 2


def test_a_folder_that_is_no_artefact_is_never_replaced(tmp_path, payload):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not an artefact"):
        make(tmp_path / "mine", payload, force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_payload_is_refused_by_name(tmp_path, payload, damage):
    make(tmp_path / "a", payload)
    file = tmp_path / "a" / "sub" / "data.bin"
    match damage:
        case "flip":
            file.write_bytes(payload[:-1] + bytes([payload[-1] ^ 1]))
        case "truncate":
            file.write_bytes(payload[:-1])
        case "remove":
            file.unlink()
    for read in (lambda: read_manifest(tmp_path / "a"), lambda: parent_digest(tmp_path / "a")):
        with pytest.raises(ArtefactError, match=r"data\.bin"):
            read()


def test_the_digest_of_a_parent_changes_with_every_byte(tmp_path, payload):
    make(tmp_path / "a", payload)
    make(tmp_path / "b", payload[::-1])
    assert parent_digest(tmp_path / "a") != parent_digest(tmp_path / "b")
    plain = tmp_path / "plain"
    link_tree(tmp_path / "a" / "sub", plain)
    before = parent_digest(plain)
    (plain / "more.json").write_text("{}")
    assert parent_digest(plain) != before


def test_wrong_stage_newer_schema_and_broken_manifest_are_told_apart(tmp_path, payload):
    make(tmp_path / "a", payload)
    with pytest.raises(InputError, match="another stage"):
        read_manifest(tmp_path / "a", "build")
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(ArtefactError, match="newer schema"):
        read_manifest(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest)[:-20])
    with pytest.raises(ArtefactError, match="damaged"):
        read_manifest(tmp_path / "a")
    with pytest.raises(InputError, match="Not an artefact"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_failing_stage_leaves_nothing(tmp_path, failure):
    def produce(folder: Path) -> dict:
        (folder / "half").write_text("written")
        raise failure

    with pytest.raises(type(failure)):
        run_stage(tmp_path / "a", "export", {}, produce)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error(tmp_path):
    def produce(folder: Path) -> dict:
        Path("/dev/full").write_text("x")
        return {}

    with pytest.raises(ArtefactError, match="No space left"):
        run_stage(tmp_path / "a", "export", {}, produce)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_stage_is_not_accepted_and_is_swept_by_the_next_run(tmp_path, payload):
    code = (
        "import sys, time; from pathlib import Path; from sana_edge.runtime.artefact import run_stage\n"
        "def produce(folder):\n"
        "    (folder / 'half').write_text('x'); print('started', flush=True); time.sleep(60)\n"
        "run_stage(Path(sys.argv[1]), 'export', {}, produce)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"started\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.05)
    assert not (tmp_path / "a").exists() and len(list(tmp_path.iterdir())) == 1
    make(tmp_path / "a", payload)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
