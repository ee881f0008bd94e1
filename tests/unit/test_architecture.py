"""The layers of DESIGN section 7 and modelfs/__init__.py, read from the syntax trees: who imports whom, and what nobody does."""

import ast
import re
from pathlib import Path

import pytest

import modelfs

PACKAGE = Path(modelfs.__file__).parent

LAYERS = [
    ("errors",),
    ("format",),
    ("crypto",),
    ("keys", "store", "audit"),
    ("trust", "cache"),
    ("reader",),
    ("seal",),
    ("control",),
    ("mount",),
    ("config",),
    ("doctor",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names} | {"__main__": len(LAYERS)}
"""`__main__` only starts the command line."""

ONLY_IN = {
    "cryptography": "crypto",
    "pyfuse3": "mount",
    "hvac": "keys",
    "boto3": "keys",
    "botocore": "keys",
    "google": "keys",
    "google_crc32c": "keys",
    "requests": "keys",
}
NOWHERE = {"random", "pickle", "marshal", "shelve", "dill", "cloudpickle"}
NOT_IN_FORMAT = {"io", "os", "pathlib", "shutil", "socket", "subprocess", "tempfile", "fcntl", "mmap", "threading", "trio", "asyncio"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}


def imported_modules(tree: ast.AST, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, dotted name) of everything a module imports, functions' imports and import_module strings included."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if is_package else module.split(".")[:-1]
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            if base == "modelfs":
                found += [(node.lineno, f"modelfs.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, base))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"modelfs(\.[a-z_0-9]+)+", node.value):
            found.append((node.lineno, node.value))
    return found


def call_name(node: ast.Call) -> str:
    if isinstance(node.func, ast.Name):
        return node.func.id
    if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return f"{node.func.value.id}.{node.func.attr}"
    return ""


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """Every rule that one module breaks, as `module:line: what`."""
    layer = module.split(".")[1] if "." in module else ""
    tree = ast.parse(source)
    found: list[str] = []

    def report(line: int, what: str) -> None:
        found.append(f"{module}:{line}: {what}")

    if layer and layer not in RANK:
        report(1, f"{layer} is in no layer")
        return found
    for line, name in imported_modules(tree, module, is_package):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top in NOWHERE or (top in ONLY_IN and layer != ONLY_IN[top]) or (layer == "format" and top in NOT_IN_FORMAT):
            report(line, f"imports {name}")
        if top != "modelfs" or not target:
            continue  # other libraries; and the root package, which holds a version and imports nothing
        if target not in RANK:
            report(line, f"imports {name}, which is in no layer")
        elif not layer:
            report(line, f"the root package imports {name}")
        elif target != layer and RANK[target] >= RANK[layer]:
            report(line, f"imports {name}, which is not lower")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if call_name(node) in FORBIDDEN_CALLS or (layer == "format" and call_name(node) == "open"):
            report(node.lineno, f"calls {call_name(node)}")
        if any(word.arg == "shell" and not (isinstance(word.value, ast.Constant) and word.value.value is False) for word in node.keywords):
            report(node.lineno, "calls with shell=")
    return found


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert len(found) > 30, f"only {len(found)} modules found in {PACKAGE}"
    return found


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_the_rules(module: str) -> None:
    path = MODULES[module]
    assert violations(module, path.read_text(), path.name == "__init__.py") == []


def test_every_layer_below_control_has_modules() -> None:
    present = {module.split(".")[1] for module in MODULES if "." in module}
    expected = {name for name, rank in RANK.items() if rank < RANK["control"]} | {"cli", "__main__"}
    assert expected <= present


def test_package_docstring_names_the_same_layers() -> None:
    line = next(line for line in (modelfs.__doc__ or "").splitlines() if line.strip().startswith("errors <"))
    assert [tuple(part.strip().split(" | ")) for part in line.strip().split("<")] == LAYERS


PLANTED = {
    "upwards": ("modelfs.format.x", "from modelfs.crypto.kdf import index_key"),
    "upwards in a function": ("modelfs.store.x", "def f():\n    from modelfs.seal import scan"),
    "sideways keys to store": ("modelfs.keys.x", "import modelfs.store.local"),
    "sideways store to keys": ("modelfs.store.x", "from modelfs import keys"),
    "sideways trust to cache": ("modelfs.trust.x", "from modelfs.cache.lru import LruMap"),
    "relative": ("modelfs.keys.x", "from ..reader import blob"),
    "relative from a package": ("modelfs.keys", "from ..reader import blob"),
    "by name": ("modelfs.keys.x", "import_module('modelfs.mount.worker')"),
    "unknown layer imported": ("modelfs.cli.x", "import modelfs.metrics"),
    "unknown layer": ("modelfs.metrics.x", ""),
    "root": ("modelfs", "from modelfs.errors import ModelfsError"),
    "errors import format": ("modelfs.errors", "from modelfs.format import limits"),
    "cryptography outside crypto": ("modelfs.keys.x", "from cryptography.hazmat.primitives import hashes"),
    "pyfuse3 outside mount": ("modelfs.control.x", "import pyfuse3"),
    "hvac": ("modelfs.trust.x", "import hvac"),
    "boto3": ("modelfs.doctor.x", "from boto3 import client"),
    "random": ("modelfs.seal.x", "import random"),
    "pickle": ("modelfs.seal.x", "import pickle"),
    "eval": ("modelfs.cli.x", "eval('1')"),
    "os.system": ("modelfs.cli.x", "os.system('ls')"),
    "shell": ("modelfs.cli.x", "subprocess.run('ls', shell=True)"),
    "shell variable": ("modelfs.cli.x", "subprocess.run('ls', shell=yes)"),
    "format opens": ("modelfs.format.x", "open('x')"),
    "format pathlib": ("modelfs.format.x", "from pathlib import Path"),
    "format os": ("modelfs.format.x", "import os.path"),
}


@pytest.mark.parametrize(("module", "source"), PLANTED.values(), ids=PLANTED)
def test_checker_finds_a_planted_violation(module: str, source: str) -> None:
    assert violations(module, source, is_package=module.count(".") == 1)


ALLOWED = {
    "downwards": ("modelfs.seal.x", "from modelfs.reader.blob import BlobReader"),
    "own package": ("modelfs.seal.x", "from modelfs.seal import scan"),
    "relative own package": ("modelfs.seal.x", "from . import scan"),
    "root": ("modelfs.cli.x", "import modelfs"),
    "cryptography in crypto": ("modelfs.crypto.x", "import cryptography"),
    "pyfuse3 in mount": ("modelfs.mount.x", "import pyfuse3"),
    "no shell": ("modelfs.cli.x", "subprocess.run(['ls'], shell=False)"),
    "method called open": ("modelfs.format.x", "thing.open('x')"),
}


@pytest.mark.parametrize(("module", "source"), ALLOWED.values(), ids=ALLOWED)
def test_checker_allows_what_is_allowed(module: str, source: str) -> None:
    assert violations(module, source) == []
