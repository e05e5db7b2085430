"""Artefacts: folders that a stage leaves behind, each with a `manifest.json` that ties it to its parent.

A manifest records the stage, its inputs (parent digest, options, versions) and the sha256 of every payload file. A
stage writes to a temporary name and renames, so that what stands under the final name is whole. Its output is
found again by its inputs: the same inputs are never computed twice.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .errors import ArtefactError, InputError

MANIFEST = "manifest.json"
SCHEMA = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """What a stage made. `details` are results that later stages and people read; `payloads` maps path -> sha256."""

    stage: str
    inputs: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    payloads: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """sha256 of the whole manifest, and through `payloads` of every byte of the artefact."""
        return digest_json(asdict(self))

    @property
    def key(self) -> str:
        """sha256 of stage and inputs: the address under which the same work is found again."""
        return digest_json({"stage": self.stage, "inputs": self.inputs})


def digest_json(value: Any) -> str:
    """sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by relative path, without its manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder) != Path(MANIFEST))
    return {p.relative_to(folder).as_posix(): digest_file(p) for p in files}


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages, for a stage's inputs; "absent" where one is not installed."""
    found = {}
    for package in ("sana-edge", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def read_manifest(folder: Path, stage: str | None = None, *, verify: bool = True) -> Manifest:
    """The manifest of an artefact, with its payloads checked against their digests.

    Raises InputError when the folder is no artefact or of another stage, ArtefactError when it is damaged.
    """
    try:
        data = json.loads((folder / MANIFEST).read_text())
        manifest = Manifest(**data)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("Not an artefact of sana-edge", where=folder, expected=f"a folder with {MANIFEST}") from None
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
        raise ArtefactError("Manifest is damaged", where=folder / MANIFEST, got=error, fix="make it again") from error
    if manifest.schema > SCHEMA:
        fix = "upgrade sana-edge"
        raise ArtefactError(
            "Manifest is of a newer schema", where=folder, expected=SCHEMA, got=manifest.schema, fix=fix
        )
    if stage is not None and manifest.stage != stage:
        raise InputError("Artefact of another stage", where=folder, expected=stage, got=manifest.stage)
    if verify:
        verify_payloads(folder, manifest)
    return manifest


def verify_payloads(folder: Path, manifest: Manifest) -> None:
    """Compares every payload with its recorded sha256. Raises ArtefactError naming the first that differs."""
    for name, expected in manifest.payloads.items():
        path = folder / name
        got = digest_file(path) if path.is_file() else "no file"
        if got != expected:
            fix = "the file was changed or truncated after it was written; run the stage that made the folder again"
            raise ArtefactError("Payload does not match its digest", where=path, expected=expected, got=got, fix=fix)


def parent_digest(folder: Path) -> str:
    """The digest by which a stage names its parent: of the manifest, or of all files of a plain checkpoint."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder).digest
    return digest_json(digest_folder(folder))


def run_stage(
    out: Path, stage: str, inputs: Mapping[str, Any], produce: Callable[[Path], dict[str, Any]], *, force: bool = False
) -> Manifest:
    """Runs `produce(folder) -> details` into a temporary folder and renames it to `out`; skips it when done before.

    Raises InputError when `out` holds something else (unless `force`, which replaces an artefact but never a folder
    without a manifest) and ArtefactError when the disk is full or cannot be written. Whatever interrupts `produce`,
    nothing half-written stays under `out`.
    """
    wanted = Manifest(stage=stage, inputs=dict(inputs))
    if existing := _existing(out, force=force):
        if existing.key == wanted.key:
            verify_payloads(out, existing)
            log.info("%s: already done in %s", stage, out)
            return existing
        if not force:
            fix = "choose another --out, or --force to replace it"
            got = f"stage {existing.stage}, other inputs"
            raise InputError("Output folder holds another artefact", where=out, expected=stage, got=got, fix=fix)
    try:
        return _write(out, wanted, produce)
    except OSError as error:
        if error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            fix = "free space or choose another --out; nothing was left behind"
            raise ArtefactError("Output cannot be written", where=out, got=error.strerror, fix=fix) from error
        raise


def _existing(out: Path, *, force: bool) -> Manifest | None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).exists():
        raise InputError("Output exists and is not an artefact", where=out, fix="choose another --out")
    try:
        return read_manifest(out, verify=False)
    except ArtefactError:
        if force:
            return Manifest(stage="damaged", inputs={})
        raise


def _write(out: Path, wanted: Manifest, produce: Callable[[Path], dict[str, Any]]) -> Manifest:
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(out)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir()
        details = produce(partial)
        manifest = Manifest(wanted.stage, wanted.inputs, details, digest_folder(partial))
        (partial / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
        replaced = out.parent / f".{out.name}.replaced-{os.getpid()}"
        if out.exists():
            out.rename(replaced)
        partial.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)
        return manifest
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_orphans(out: Path) -> None:
    """Removes partial folders whose process is gone."""
    for folder in out.parent.glob(f".{out.name}.partial-*"):
        pid = folder.name.rpartition("-")[2]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            shutil.rmtree(folder, ignore_errors=True)


def link_tree(source: Path, target: Path) -> None:
    """Puts the files of a folder under another: hard links where the file system can, copies elsewhere."""

    def link(src: str, dst: str) -> None:
        try:
            os.link(os.path.realpath(src), dst)
        except OSError:
            shutil.copy2(src, dst)

    shutil.copytree(source, target, copy_function=link)
