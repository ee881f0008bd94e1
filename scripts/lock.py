"""Pins the release environment; what scripts/lock runs. The files name no index: where packages come from is the installer's choice."""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
NOT_RELEASED = {"dev", "release", "runtimes"}
"""Extras that no host installs."""

BIN = Path(sys.executable).parent


def run(*command: object) -> None:
    """Run a program of this environment, from the project's directory."""
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


def released_extras() -> list[str]:
    """Every extra that a host may install, sorted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return sorted(set(project["optional-dependencies"]) - NOT_RELEASED)


def compile_lock(source: str, target: str, *options: str) -> None:
    """Resolve `source` into `requirements/target`, for every platform and Python that modelfs runs on."""
    command = [BIN / "uv", "pip", "compile", source, "-o", f"requirements/{target}", "--universal", "--python-version", "3.11"]
    run(*command, "--generate-hashes", "--no-config", "--custom-compile-command", "scripts/lock", "--quiet", *options)


def write_sbom() -> None:
    """Install the lock into an environment of its own, hashes checked, and list what is there."""
    with tempfile.TemporaryDirectory(prefix="modelfs-lock-") as directory:
        environment, found = Path(directory) / "env", Path(directory) / "sbom.json"
        run(BIN / "uv", "venv", "--quiet", "--python", sys.executable, environment)
        run(BIN / "uv", "pip", "install", "--quiet", "--python", environment, "--require-hashes", "-r", FOLDER / "release.txt")
        run(BIN / "cyclonedx-py", "environment", "--pyproject", "pyproject.toml", "--output-reproducible", "-o", found, environment)
        listed = without_links(json.loads(found.read_text()))
    (FOLDER / "sbom.json").write_text(json.dumps(listed, indent=1, sort_keys=True) + "\n")


def without_links(value: Any) -> Any:
    """The same without the web addresses that packages give of themselves: nobody has checked them."""
    if isinstance(value, dict):
        return {key: without_links(item) for key, item in value.items() if key != "externalReferences"}
    return [without_links(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    options = sys.argv[1:]
    if options not in ([], ["--upgrade"]):
        sys.exit("lock: use scripts/lock [--upgrade]")
    extras = [option for extra in released_extras() for option in ("--extra", extra)]
    compile_lock("pyproject.toml", "release.txt", *extras, *options)
    compile_lock("requirements/build.in", "build.txt", *options)
    write_sbom()


if __name__ == "__main__":
    main()
