"""The house rules that a compiler would keep in another language: packages, import directions, one importer each."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("runtime", "calibration_data", "quantize", "export", "tools")
"""Whoever stands later may import whoever stands earlier."""

ONE_IMPORTER = {
    "modelopt": {"quantize/modelopt_calibration.py"},
    "bitsandbytes": {"quantize/bitsandbytes_quantization.py"},
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def names(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in the file it does."""
    package = ["sana_edge", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def test_pyproject_lists_the_folders_on_disk() -> None:
    on_disk = {".".join(("sana_edge", *p.parent.relative_to(ROOT).parts)) for p in FILES if p.name == "__init__.py"}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == on_disk


def test_every_folder_with_modules_is_a_package() -> None:
    bare = {p.parent.relative_to(ROOT).as_posix() for p in FILES if not (p.parent / "__init__.py").exists()}
    assert bare == set()


@pytest.mark.parametrize("layer", LAYERS)
def test_top_level_packages_are_typed(layer: str) -> None:
    assert (ROOT / layer / "py.typed").is_file()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"][f"sana_edge.{layer}"]


def test_root_is_a_namespace() -> None:
    assert not (ROOT / "__init__.py").exists()


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == layer
        for name in names(path)
        if name.startswith("sana_edge.") and name.split(".")[1] not in allowed
    ]
    assert wrong == []


def test_packages_import_each_other_relatively() -> None:
    """Absolute imports of the own package would tie the code to one name for it."""
    absolute = re.compile(r"^\s*(from|import) sana_edge\b", re.MULTILINE)
    assert [str(p.relative_to(ROOT)) for p in FILES if absolute.search(p.read_text())] == []


@pytest.mark.parametrize("package", ONE_IMPORTER)
def test_fragile_dependencies_have_one_importer(package: str) -> None:
    importers = {
        path.relative_to(ROOT).as_posix() for path in FILES if any(n.split(".")[0] == package for n in names(path))
    }
    assert importers <= ONE_IMPORTER[package]


def test_nothing_is_unpickled() -> None:
    """Pickles run code when they are read: weights are safetensors, data is JSON."""
    found = []
    for path in FILES:
        called = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        modules = {name.split(".")[0] for name in names(path)}
        if called & {"torch.load", "np.load", "numpy.load"} or modules & {"pickle", "dill", "cloudpickle", "shelve"}:
            found.append(str(path.relative_to(ROOT)))
    assert found == []


def test_constraints_pin_every_direct_dependency() -> None:
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    required = {re.split(r"[\s>=<\[;!~]", dependency)[0].lower() for dependency in wanted} - {"sana-edge"}
    lines = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    assert required <= pinned
