"""A mount's whole life at debug level, with its KEK in AWS KMS: nothing that is logged or recorded holds a key or a credential."""

import json
import re
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelfs.keys.interface import unwrap_dek
from modelfs.reader.index import fetch_index, open_index
from modelfs.store.local import Store
from modelfs.trust.release import read_keys
from tests.aws.emulators import SECRET_KEY, Emulator, credentials_file, provider
from tests.aws.impostor import KEY_ARN, error, reply
from tests.aws.leased import Leased, variables
from tests.aws.outages import TTL_S
from tests.helpers import KeySet
from tests.leases.impostor import server_context
from tests.leases.outages import impostor
from tests.leases.watching import FILE, PLAIN
from tests.mount.conftest import Mounted, modelfs, wait_until
from tests.mount.test_memory import memory
from tests.vault.test_mounted_secrets import leaks

TOKEN = "session-TOKEN-session-TOKEN-session-TOKEN"
OTHER = b"another key's bytes, 32 of them."


def test_a_whole_life_at_debug_level(
    ministack: Emulator, authority: Any, keys_dir: KeySet, mount: Callable[..., Mounted], tmp_path: Path
) -> None:
    leased = Leased(ministack, authority, keys_dir, tmp_path)
    credentials_file(leased.credentials, token=TOKEN)
    with variables(leased.environment), Store(leased.sealed.path) as store:
        manifest = leased.sealed.manifest
        keys = read_keys(store, manifest)
        dek = unwrap_dek(provider(leased.key), keys, manifest)
        index = open_index(fetch_index(store, manifest), manifest, dek)
    secrets = {
        "DEK": dek,
        "wrapped key": keys.recipients[0].wrapped_key,
        "secret access key": SECRET_KEY.encode(),
        "session token": TOKEN.encode(),
        "what somebody answered": OTHER,
        **{f"blob key of {entry.path}": entry.blob_key for entry in index.files},
    }
    wanted = leased.wanted(ttl_s=TTL_S)
    mounted = mount(wanted.sealed, *wanted.options, "--log-level", "debug", "--audit", tmp_path / "audit", environment=wanted.environment)
    assert (mounted.path / FILE).read_bytes() == PLAIN
    said = [modelfs("status", mounted.path, "--json").stdout.encode()]
    status = mounted.status()
    for pid in (status["control"], status["warden"], *status["workers"]):
        held = memory(pid)
        assert len(held) > 1 << 20
        assert leaks({"secret access key": SECRET_KEY.encode(), "session token": TOKEN.encode()}, held) == []
    # An outage that answers other bytes, the lease's end, the way back, and a denial.
    context = server_context(*authority.issue("secrets", is_server=True))
    with impostor(context, reply({"KeyId": KEY_ARN, "Plaintext": b64encode(OTHER).decode()})) as port:
        leased.switch.lead_to(port)
        wait_until(lambda: mounted.status()["lease"] == "locked", 20, "the lease's end")
    leased.switch.lead_to(leased.front.port)
    wait_until(lambda: mounted.status()["lease"] == "granted", 20, "the unlock")
    assert (mounted.path / FILE).read_bytes() == PLAIN
    said.append(modelfs("status", mounted.path).stdout.encode())
    with impostor(context, error("AccessDeniedException", f"User is not allowed, with {TOKEN}")) as port:
        leased.switch.lead_to(port)
        wait_until(lambda: not mounted.is_attached(), 10, "the revocation")
        wait_until(lambda: b'"revoked"' in (tmp_path / "audit").read_bytes(), 10, "its line in the audit log")
    leased.close()
    log, audit = (mounted.state_dir / "demo.log").read_bytes(), (tmp_path / "audit").read_bytes()
    assert b"DEBUG proof: " in log, "the log is not at debug level"
    assert not re.search(rb"botocore|urllib3|X-Amz|Authorization|TrentService", log), "the SDK's loggers speak"
    kinds = [json.loads(line)["event"] for line in audit.splitlines()]
    assert {"mount", "renewal failed", "locked", "unlock", "denied", "revoked"} <= set(kinds)
    for text in (*said, log, audit):
        assert len(text) > 100
        assert leaks(secrets, text) == []
