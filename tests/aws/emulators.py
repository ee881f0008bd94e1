"""Two servers of the KMS API, as processes on loopback: moto and ministack. Each is wrong in other places (test_emulators.py)."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.session

from modelfs.keys.aws import AwsProvider
from tests.leases.tls import HOST, free_port

REGION = "eu-central-1"
ACCESS_KEY, SECRET_KEY = "AKIAEMULATOREMULATOR", "emulatorSECRETemulatorSECRETemulator0000"
START_SECONDS = 60.0
NAMES = ("moto", "ministack")


@dataclass
class Emulator:
    """A running server."""

    name: str
    directory: Path
    port: int = field(default_factory=free_port)
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self._log = self.directory / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        programs = Path(sys.executable).parent
        if self.name == "moto":
            command = [str(programs / "moto_server"), "-H", HOST, "-p", str(self.port)]
        else:
            command = [str(programs / "ministack")]
        settings = {"BIND_HOST": HOST, "GATEWAY_PORT": str(self.port), "PYTHONDONTWRITEBYTECODE": "1", **self.env}
        env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(command, env={**env, **settings}, stdout=log, stderr=log, cwd=self.directory)
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(Exception):
                self.admin().list_keys()
                return
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"{self.name} does not answer"
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def kill(self) -> None:
        """SIGKILL: everything that it knew is gone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
            self._process.kill()
            self._process.wait(20)

    def stop(self) -> None:
        self.kill()
        # ministack leaves it wherever it is started.
        Path(tempfile.gettempdir(), f"ministack-{self.port}.pid").unlink(missing_ok=True)

    def admin(self, service: str = "kms", access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Any:
        """A client of the SDK's own, which nothing of modelfs has touched."""
        config = botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=20)
        keys = {"aws_access_key_id": access_key, "aws_secret_access_key": secret_key}
        session = botocore.session.Session()
        return session.create_client(service, region_name=REGION, endpoint_url=self.address, config=config, **keys)

    def key(self, **options: Any) -> str:
        """A new key's ARN."""
        arn: str = self.admin().create_key(**options)["KeyMetadata"]["Arn"]
        return arn


def credentials_file(path: Path, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY, token: str = "") -> Path:
    """A file of the SDK's, for its owner alone."""
    lines = ["[default]", f"aws_access_key_id = {access_key}", f"aws_secret_access_key = {secret_key}"]
    if token:
        lines.append(f"aws_session_token = {token}")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
    return path


def environment(address: str, credentials: Path, ca: Path | None = None) -> dict[str, str]:
    """What a host's SDK is told."""
    nowhere = credentials.parent / "no-aws-config"
    found = {
        "AWS_ENDPOINT_URL_KMS": address,
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "AWS_CONFIG_FILE": str(nowhere),
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return found if ca is None else {**found, "AWS_CA_BUNDLE": str(ca)}


def use(monkeypatch: Any, variables: Mapping[str, str]) -> None:
    """Set them in this process, and no other of the SDK's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def provider(reference: str, now: Callable[[], float] = time.time) -> AwsProvider:
    """The provider of a key in an emulator."""
    return AwsProvider(reference, insecure_http=True, now=now)


@contextlib.contextmanager
def running(name: str, directory: Path, **env: str) -> Iterator[Emulator]:
    """An emulator, for a while."""
    made = Emulator(name, directory, env=dict(env))
    try:
        yield made
    finally:
        made.stop()
