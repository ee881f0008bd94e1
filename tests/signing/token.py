"""A PKCS#11 token in software (SoftHSM2), in a directory of its own; its keys are made by OpenSC's pkcs11-tool."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm.so", "/usr/lib64/pkcs11/libsofthsm2.so")
PIN, WRONG_PIN = "4711-Geheim", "0815-Geheim"
LABEL = "release keys"


def missing() -> str:
    """What this host lacks; empty if nothing."""
    lacking = [name for name in ("softhsm2-util", "pkcs11-tool") if not shutil.which(name)]
    if not any(os.path.exists(module) for module in MODULES):
        lacking.append("libsofthsm2.so")
    return ", ".join(lacking)


@dataclass(frozen=True)
class Token:
    """One initialised token. Everything that uses it has `environment`."""

    directory: Path

    @property
    def module(self) -> str:
        return next(module for module in MODULES if os.path.exists(module))

    @property
    def environment(self) -> dict[str, str]:
        return {"SOFTHSM2_CONF": str(self.directory / "softhsm2.conf"), "PYKCS11LIB": self.module}

    @property
    def pin_file(self) -> Path:
        return self.directory / "pin"

    def write_pin(self, text: str, name: str = "pin", mode: int = 0o600) -> Path:
        path = self.directory / name
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(text)
        return path

    def uri(self, keyid: int) -> str:
        return f"hsm:{keyid}?label={LABEL.replace(' ', '+')}"

    def make_key(self, keyid: int, curve: str = "prime256v1") -> str:
        """A key pair; its URI."""
        kind = ["--keypairgen", "--key-type", f"EC:{curve}" if not curve.startswith("rsa") else curve]
        self._run("pkcs11-tool", "--module", self.module, "--token-label", LABEL, "--login", "--pin", PIN, *kind, "--id", f"{keyid:02x}")
        return self.uri(keyid)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr


def make_token(directory: Path) -> Token:
    """A token with a PIN and no keys."""
    token = Token(directory)
    (directory / "tokens").mkdir()
    (directory / "softhsm2.conf").write_text(f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    token._run("softhsm2-util", "--init-token", "--free", "--label", LABEL, "--so-pin", "so-" + PIN, "--pin", PIN)
    token.write_pin(f"{PIN}\n")
    return token
