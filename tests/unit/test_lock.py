"""The release environment: pinned, hashed, complete, listed; and an installer that is offered something else refuses it."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import REPOSITORY

FOLDER = REPOSITORY / "requirements"
NOT_RELEASED = {"dev", "release", "runtimes"}
ENTRY = re.compile(
    r"^(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>\S+)(?: ; (?P<marker>.*?))? \\\n(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
)


def entries(name: str) -> dict[str, re.Match[str]]:
    """The pins of a lock file by package; nothing in it but pins, hashes and comments."""
    text = (FOLDER / name).read_text()
    found: dict[str, re.Match[str]] = {}
    at = 0
    while at < len(text):
        if text[at:].lstrip(" ").startswith("#"):
            at = text.index("\n", at) + 1
            continue
        match = ENTRY.match(text[at:])
        assert match, f"{name}: neither a comment nor a package with hashes: {text[at : at + 80]!r}"
        assert match["name"] not in found
        found[match["name"]] = match
        at += match.end()
    assert found
    return found


def wanted() -> list[Requirement]:
    """What pyproject.toml demands of a host, with every extra that a host may install."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in NOT_RELEASED}
    assert {"mount", "vault"} <= set(extras)
    return [Requirement(line) for lines in (project["dependencies"], *extras.values()) for line in lines]


def test_every_requirement_is_pinned_to_a_version_that_satisfies_it() -> None:
    pinned = entries("release.txt")
    for requirement in wanted():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not pinned: run scripts/lock"
        assert requirement.specifier.contains(pinned[name]["version"]), f"{requirement} and {pinned[name]['version']}: run scripts/lock"


def test_the_tools_that_build_are_pinned() -> None:
    pinned = entries("build.txt")
    for line in (FOLDER / "build.in").read_text().splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]["version"])
    backend = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"]
    assert all(Requirement(line).specifier.contains(pinned[Requirement(line).name]["version"]) for line in backend)


def test_the_lock_names_no_index() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert "index-url" not in text, path
        assert "find-links" not in text, path
        assert {*re.findall(r"https?://[^\s\"]+", text)} <= {"http://cyclonedx.org/schema/bom-1.6.schema.json"}, path


def test_the_bill_of_materials_lists_what_is_pinned() -> None:
    listed = json.loads((FOLDER / "sbom.json").read_text())
    assert (listed["bomFormat"], listed["metadata"]["component"]["name"]) == ("CycloneDX", "modelfs")
    found = {canonicalize_name(each["name"]): each for each in listed["components"]}
    # What the marker keeps away from Linux and CPython is pinned and not installed.
    here = {name: match["version"] for name, match in entries("release.txt").items() if "win32" not in (match["marker"] or "")}
    assert {name: each["version"] for name, each in found.items()} == here
    for name, each in found.items():
        assert each["purl"] == f"pkg:pypi/{name}@{each['version']}"
    # protobuf's metadata names its own in words that are no SPDX expression; any other is to be looked at before a release.
    assert {name for name, each in found.items() if not each.get("licenses")} <= {"protobuf"}
    roots = next(each["dependsOn"] for each in listed["dependencies"] if each["ref"] == listed["metadata"]["component"]["bom-ref"])
    assert {canonicalize_name(Requirement(line).name) for line in roots} <= set(found)
    assert len(roots) >= 7


def wheel(folder: Path, name: str, version: str) -> Path:
    """A package that installs and holds nothing but its name."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    about = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    return path


def install(folder: Path, lock: str) -> "subprocess.CompletedProcess[str]":
    """`pip install --require-hashes`, from one directory alone, into another."""
    (folder / "lock.txt").write_text(lock)
    where = ["--no-index", "--find-links", str(folder), "--target", str(folder / "installed"), "--isolated"]
    command = [sys.executable, "-m", "pip", "install", "--require-hashes", "-r", str(folder / "lock.txt"), *where]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")} | {"PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)


def test_a_planted_package_is_refused(tmp_path: Path) -> None:
    """A mirror offers something of its own under a name and version of the lock."""
    pin = entries("release.txt")["idna"]
    planted = wheel(tmp_path, "idna", pin["version"])
    done = install(tmp_path, pin[0])
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "installed").exists()
    digest = hashlib.sha256(planted.read_bytes()).hexdigest()
    done = install(tmp_path, f"idna=={pin['version']} --hash=sha256:{digest}\n")
    assert done.returncode == 0, "it was refused for another reason than its hash: " + done.stderr


@pytest.mark.parametrize("line", ["idna=={version}\n", "idna\n"])
def test_a_package_without_a_hash_is_refused(tmp_path: Path, line: str) -> None:
    version = entries("release.txt")["idna"]["version"]
    wheel(tmp_path, "idna", version)
    done = install(tmp_path, line.format(version=version))
    assert done.returncode != 0
    assert "Hashes are required" in done.stderr or "must have their versions pinned" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_lock_installs(tmp_path: Path) -> None:
    """As docs/OPERATIONS.md says, into an environment of its own: needs a package index and a compiler."""
    shown = re.search(r"^```sh install\n(.*?)^```$", (REPOSITORY / "docs" / "OPERATIONS.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown
    script = shown[1].replace("/opt/modelfs", str(tmp_path / "opt"))
    done = subprocess.run(["sh", "-euxc", script], capture_output=True, text=True, check=False, timeout=800, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^modelfs \d", done.stdout, re.MULTILINE), done.stdout
