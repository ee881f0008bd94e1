"""Whether a key in Google Cloud KMS can be used from here. Changes nothing there; the refused call is in the service's audit log."""

from modelfs.doctor.check import Check
from modelfs.errors import KeyAccessError, KeyDeniedError
from modelfs.keys.gcp import open_provider


def check_gcp(uri: str) -> list[Check]:
    """The check of `gcpkms:...`; ConfigError if it is malformed."""
    provider = open_provider(uri.removeprefix("gcpkms:"))
    try:
        provider.probe()
    except KeyDeniedError as exc:
        return [Check("gcp-key", "error", str(exc), "bind the role of policies/gcp-host.json to this host's service account, on the key")]
    except KeyAccessError as exc:
        return [Check("gcp-key", "error", str(exc), "see docs/GCP.md: which key, and which service account this host logs in as")]
    return [Check("gcp-key", "ok", f"{provider.describe()} answers, and this host may unwrap with it", "")]
