"""Imports point one way only (data and nn never meet; a ConfigDict stops at experiments/build.py)."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCIENTIFIC = {"numpy", "pandas", "pyarrow", "scipy", "tqdm", "jaxtyping"}
DEVICE = {"jax", "flax", "optax", "orbax", "chex", "etils"}  # etils: the paths that Orbax takes
# package -> what its files may import beside the standard library and their own package
ALLOWED = {
    "configs": {"ml_collections", "configs"},
    "ehrjax.types": SCIENTIFIC,
    "ehrjax.wording": set(),
    "ehrjax.data": SCIENTIFIC | {"ehrjax.types", "ehrjax.wording"},
    "ehrjax.nn": SCIENTIFIC | DEVICE | {"ehrjax.types"},
    "ehrjax.models": SCIENTIFIC | DEVICE | {"ehrjax.types", "ehrjax.nn"},
    "ehrjax.objectives": SCIENTIFIC | DEVICE | {"ehrjax.types", "ehrjax.nn", "ehrjax.models"},
    "ehrjax.metrics": SCIENTIFIC | DEVICE | {"ehrjax.types", "ehrjax.wording"},
}
MIDDLE = {"ehrjax.types", "ehrjax.wording", "ehrjax.nn", "ehrjax.models", "ehrjax.objectives", "ehrjax.metrics"}
ALLOWED["ehrjax.train"] = SCIENTIFIC | DEVICE | MIDDLE
EVALUATE = {"sklearn", "threadpoolctl", "matplotlib", "ehrjax.train", "ehrjax.data"}  # an audit rebuilds the data
ALLOWED["ehrjax.evaluate"] = SCIENTIFIC | DEVICE | MIDDLE | EVALUATE


def _imported_modules(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _is_allowed(module: str, package: str, allowed: set[str]) -> bool:
    own = {package, *allowed}
    return module.split(".")[0] in sys.stdlib_module_names or any(
        module == name or module.startswith(name + ".") for name in own
    )


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package):
    base = ROOT / package.replace(".", "/")
    files = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    assert files, f"no file in {package}"
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in _imported_modules(path)
        if not _is_allowed(module, package, ALLOWED[package])
    ]
    assert not wrong, "\n".join(wrong)


def test_only_experiments_and_configs_know_of_ml_collections():
    wrong = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "ehrjax").rglob("*.py")
        for module in _imported_modules(path)
        if module.split(".")[0] in {"ml_collections", "absl", "configs", "experiments"}
    ]
    assert not wrong, wrong
