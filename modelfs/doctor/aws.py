"""What an operator can get wrong about a key in AWS KMS: credentials, endpoint, the key itself, and permission to unwrap with it.

Asks the service and changes nothing there. No check's text holds a secret or words of the service.
"""

from urllib.parse import urlsplit

from modelfs.doctor.check import Check
from modelfs.errors import KeyAccessError
from modelfs.format.limits import FORMAT
from modelfs.keys.aws import AwsProvider, open_provider
from modelfs.keys.aws_answers import Kind, RefusedError

TIMEOUT_S = 10.0
_METHODS = {
    "env": "the environment",
    "shared-credentials-file": "the credentials file",
    "config-file": "the configuration file",
    "custom-process": "a credential_process",
    "assume-role": "a role",
    "assume-role-with-web-identity": "a role, by a web identity",
    "sso": "IAM Identity Center",
    "container-role": "the container's role",
    "iam-role": "the instance's role",
    "login": "a login",
}
"""The SDK's name of a way to find credentials -> ours."""
_NO_DRY_RUNS, _INSPECT = "the service does not know dry runs: it is not AWS KMS", "see whether `modelfs inspect` opens the model"
_STATES = {
    "Disabled": "is disabled",
    "PendingDeletion": "is pending deletion",
    "PendingReplicaDeletion": "is pending deletion",
    "PendingImport": "has no key material",
    "Unavailable": "is unavailable: its key store is disconnected",
}


def check_aws(uri: str, insecure_http: bool, model: str | None) -> list[Check]:
    """Every check of `awskms:REFERENCE`, up to the first that leaves nothing to ask.

    Args:
        uri: The KEK.
        insecure_http: Allow plain http to a loopback address.
        model: Name of the model that is to be mounted, where it is known: a policy may allow no other.

    Raises:
        ConfigError: The URI names no key, or the SDK is not installed.
    """
    provider = open_provider(uri.removeprefix("awskms:"), insecure_http)
    try:
        found = provider.connection.look(TIMEOUT_S)
    except KeyAccessError as exc:
        return [Check("aws-login", "error", str(exc), "mend that, then run modelfs doctor again (docs/AWS.md, section 3)")]
    how = _METHODS.get(found.method, "the SDK's configuration")
    if found.left_s == float("inf"):
        advice = "prefer a role: its credentials end by themselves"
        checks = [Check("aws-login", "ok", f"credentials without an end, from {how}", advice)]
    else:
        checks = [Check("aws-login", "ok", f"temporary credentials from {how}, good for {found.left_s / 60:.0f} minutes")]
    return [*checks, _check_endpoint(found.endpoint), _check_key(provider), _check_decrypt(provider, model)]


def _check_endpoint(url: str) -> Check:
    parts = urlsplit(url)
    where = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    if parts.scheme != "https":
        return Check("aws-endpoint", "warning", f"{where} over plain http", "use https, except for tests on this host")
    return Check("aws-endpoint", "ok", f"{where} over TLS, its certificate verified at every request")


def _check_key(provider: AwsProvider) -> Check:
    name = "aws-key"
    try:
        answer = provider.connection.call("describe_key", TIMEOUT_S, KeyId=provider.reference)
    except RefusedError as refusal:
        if refusal.code == "AccessDeniedException":
            return Check(
                name, "unknown", "this host may not describe the key, which it need not", "allow kms:DescribeKey to see its state here"
            )
        return Check(name, "error", f"{provider.describe()}: {refusal}", "check the reference and the region")
    except KeyAccessError as exc:
        return Check(name, "error", str(exc), "mend that, then run modelfs doctor again")
    data = answer.get("KeyMetadata")
    data = data if isinstance(data, dict) else {}
    state = data.get("KeyState")
    if state in _STATES:
        return Check(name, "error", f"{provider.describe()} {_STATES[state]}", "enable it, or name another with --kek")
    if data.get("KeyUsage", "ENCRYPT_DECRYPT") != "ENCRYPT_DECRYPT" or data.get("KeySpec", "SYMMETRIC_DEFAULT") != "SYMMETRIC_DEFAULT":
        return Check(name, "error", f"{provider.describe()} is no key for symmetric encryption", "make one (docs/AWS.md, section 1)")
    if state != "Enabled":
        return Check(name, "unknown", f"{provider.describe()} is in a state of its own", "look at it with aws kms describe-key")
    return Check(name, "ok", f"{provider.describe()} is enabled")


def _check_decrypt(provider: AwsProvider, model: str | None) -> Check:
    """By a dry run, which looks at the permission alone."""
    name = "aws-decrypt"
    pairs = {"modelfs:format": FORMAT, "modelfs:model": model or "modelfs-doctor", "modelfs:key-id": "0" * 32}
    dry = {"DryRun": True, "DryRunModifiers": ["IGNORE_CIPHERTEXT"]}
    try:
        provider.connection.call("decrypt", TIMEOUT_S, KeyId=provider.reference, EncryptionContext=pairs, **dry)
    except RefusedError as refusal:
        if refusal.kind is Kind.ALLOWED:
            return Check(name, "ok", "kms:Decrypt is allowed" + (f" for {model}" if model else ""))
        if refusal.code == "InvalidCiphertextException":
            return Check(name, "unknown", _NO_DRY_RUNS, _INSPECT)
        advice = "give the host policies/aws-host.json"
        if model is None:
            advice += "; or its policy names a model: then use --config FILE, which says which"
        return Check(name, "error", f"{provider.describe()}: {refusal}", advice)
    except KeyAccessError as exc:
        return Check(name, "unknown", f"whether kms:Decrypt is allowed: {exc}", "the dry run needs a newer boto3, or is not answered there")
    return Check(name, "unknown", _NO_DRY_RUNS, _INSPECT)
