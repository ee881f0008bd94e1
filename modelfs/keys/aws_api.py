"""AWS by its SDK: what the SDK finds by itself, how its requests are sent, and one deadline for everything. See aws.py for the environment.

The SDK's own sending bounds neither the whole time nor the size of an answer, may send to a plain http address, and in some releases
verifies nothing if AWS_CA_BUNDLE is empty; its loggers write bodies of requests and answers. Each of these is mended here, for KMS and for
the services that it gets credentials from.
"""

import codecs
import ipaddress
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import botocore.awsrequest
import botocore.client
import botocore.endpoint
import botocore.httpsession
import botocore.loaders
import botocore.retries.standard
import botocore.session
import botocore.utils
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    ConnectionError,
    HTTPClientError,
    InvalidConfigError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)

from modelfs.errors import KeyAccessError, KeyServiceError
from modelfs.keys.aws_answers import EXPIRED, Kind, RefusedError, Reply, judge
from modelfs.keys.aws_login import FULL_LIFE_S, Login, login_of
from modelfs.keys.deadline import within

MAX_ANSWER_SIZE = 256 * 1024
_METADATA_TIMEOUT_S = 1
_MISCONFIGURED = (ProfileNotFound, ConfigParseError, InvalidConfigError, PartialCredentialsError)
_LOGGERS = ("botocore", "boto3", "s3transfer", "urllib3")


def _silence() -> None:
    """Nothing that these loggers say goes anywhere: credentials, keys and their answers are among it."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.handlers = [logging.NullHandler()]
        logger.setLevel(logging.CRITICAL)


def _load_models() -> botocore.loaders.Loader:
    """The descriptions of the services, which take longest to load: once, and for all processes forked afterwards. Only the SDK's own."""
    loader = botocore.loaders.Loader([botocore.loaders.Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    for service in ("kms", "sts"):
        loader.load_service_model(service, "service-2")
        loader.load_service_model(service, "endpoint-rule-set-1")
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data(name)
    return loader


codecs.lookup("idna")  # name look-ups use it: loaded here once, or each prover would load it within its second
_silence()
_MODELS = _load_models()


class AwsConnection:
    """KMS for one process. Reads the SDK's configuration and credentials when it is first used; holds no secret before that."""

    def __init__(self, region: str | None, insecure_http: bool, now: Callable[[], float] = time.time) -> None:
        """Nothing is read or sent yet.

        Args:
            region: Where the key is; None: what the SDK's configuration says.
            insecure_http: Allow plain http to a loopback address, and nowhere else.
            now: The wall clock, by which credentials end.
        """
        self.login: Login | None = None
        """Temporary credentials to go on with, until they near their end."""
        self.where = f"AWS KMS in {region}" if region else "AWS KMS"
        self.region = region
        self.allows_http = insecure_http
        self._now = now
        self._deadline: float | None = None
        self._keep: Callable[[bytes], None] = lambda _: None

    def begin(self, timeout_s: float, keep: Callable[[bytes], None]) -> None:
        """A proof: from now on all calls together have this long, and `keep` is given each login as soon as it is known; b"" for none."""
        self._deadline = time.monotonic() + timeout_s
        self._keep = keep

    def call(self, operation: str, timeout_s: float, **parameters: Any) -> dict[str, Any]:
        """One call of KMS.

        Args:
            operation: For example `decrypt`.
            timeout_s: For finding credentials and the call together, unless `begin` has said less.
            parameters: As the SDK takes them.

        Raises:
            RefusedError: The service itself said no.
            KeyServiceError: No answer that counts.
            KeyAccessError: The SDK's configuration must be mended.
        """
        deadline = time.monotonic() + timeout_s
        if self._deadline is not None:
            deadline = min(deadline, self._deadline)

        def do() -> dict[str, Any]:
            conversation = _Conversation(self, deadline)
            if self.login is not None and self.login.left_s(self._now()) <= 0:
                self.login = None
            login = self.login
            if login is None or login.left_s(self._now()) < FULL_LIFE_S:
                login = conversation.log_in(login)
            self.login = login if login.ends_at is not None else None
            self._keep(login.to_bytes() or b"")
            return conversation.call(login, operation, parameters)

        try:
            return within(deadline - time.monotonic(), do)
        except RefusedError as refusal:
            if refusal.code in EXPIRED:
                self.login = None
                self._keep(b"")
            if refusal.kind is Kind.OUTAGE or (refusal.kind is Kind.ALLOWED and not parameters.get("DryRun")):
                raise KeyServiceError(f"the key service {self.where} cannot serve now: {refusal}") from None
            raise
        except TimeoutError:
            raise KeyServiceError(f"the key service {self.where} did not answer in time") from None

    def look(self, timeout_s: float) -> "Surroundings":
        """What the SDK has found, for a person; errors as `call`. Asks for credentials, and not KMS."""
        deadline = time.monotonic() + timeout_s

        def do() -> Surroundings:
            conversation = _Conversation(self, deadline)
            login = conversation.log_in(None)
            return Surroundings(str(conversation.client(login).meta.endpoint_url), login.left_s(self._now()), conversation.method)

        try:
            return within(timeout_s, do)
        except TimeoutError:
            raise KeyServiceError(f"no credentials for {self.where}: where they come from did not answer in time") from None


@dataclass(frozen=True)
class Surroundings:
    """What the SDK has found. No secret."""

    endpoint: str
    left_s: float
    """To the end of the credentials; infinite for those without."""
    method: str
    """How the SDK calls the way by which it found them."""


class _Conversation:
    """One session of the SDK, for one call and the credentials that it takes."""

    def __init__(self, connection: AwsConnection, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._reply: Reply | None = None
        self.method = "held"
        os.environ.pop("SSLKEYLOGFILE", None)  # the SDK would write the keys of its TLS sessions there
        self._session = botocore.session.Session()
        self._session.register_component("data_loader", _MODELS)
        # Takes the place of the SDK's own sending, for every client of this session.
        self._session.register("before-send", self._send)

    def _left_s(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def log_in(self, held: Login | None) -> Login:
        """Credentials as the SDK finds them; those that are held, if that takes more than half of the time or fails."""
        left = self._left_s()

        def find() -> Login:
            session = self._session
            # Else a host that is no machine of Amazon's would wait for its metadata for longer than a proof may take.
            session.set_config_variable("metadata_service_timeout", min(_METADATA_TIMEOUT_S, left / 4))
            session.set_config_variable("metadata_service_num_attempts", 1)
            session.set_config_variable("ca_bundle", self._verify())
            session.set_config_variable("retry_mode", "standard")
            session.set_config_variable("max_attempts", 1)
            found = session.get_credentials()
            if found is None:
                raise NoCredentialsError
            self.method = str(getattr(found, "method", "unknown"))
            return login_of(found)

        try:
            return within(left / 2 if held is not None else left, find)
        except Exception as exc:
            if held is not None:
                return held
            raise self._explain_login(exc) from None

    def client(self, login: Login) -> Any:
        """The SDK's own client of KMS."""
        config = Config(
            connect_timeout=self._left_s(),
            read_timeout=self._left_s(),
            retries={"total_max_attempts": 1, "mode": "standard"},
            user_agent_extra="modelfs",
        )
        try:
            made = self._session.create_client(
                "kms",
                region_name=self._connection.region,
                verify=self._verify(),
                config=config,
                aws_access_key_id=login.access_key,
                aws_secret_access_key=login.secret_key,
                aws_session_token=login.token,
            )
        except Exception as exc:
            raise self._explain(exc) from None
        self._connection.where = f"AWS KMS in {made.meta.region_name}"
        return made

    def call(self, login: Login, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        client = self.client(login)
        self._reply = None
        try:
            answer: dict[str, Any] = getattr(client, operation)(**parameters)
        except ClientError:
            if self._reply is None:
                raise RuntimeError("an error of the service is in an answer") from None
            raise judge(self._reply) from None
        except Exception as exc:
            raise self._explain(exc) from None
        return answer

    def _verify(self) -> str | bool:
        """The CA file that the SDK's configuration names; never nothing."""
        named = self._session.get_config_variable("ca_bundle")
        return named if isinstance(named, str) and named.strip() else True

    def _send(self, request: Any, **_: Any) -> Any:
        """In place of the SDK's own: https, no redirect, what is left of the time, and answers of a bounded size."""
        url = str(request.url)
        self._check_address(url)
        # Plain http is for this host alone: no proxy.
        proxies = botocore.utils.get_environ_proxies(url) if url.startswith("https:") else {}
        left = self._left_s()
        session = botocore.httpsession.URLLib3Session(verify=self._verify(), proxies=proxies, timeout=(left, left))
        try:
            request.stream_output = True  # it would read all that comes
            answer = session.send(request)
            body = answer.raw.read(MAX_ANSWER_SIZE + 1)
        finally:
            session.close()
        length = answer.headers.get("Content-Length")
        if len(body) > MAX_ANSWER_SIZE or (length is not None and length != str(len(body))):
            raise KeyServiceError(f"the key service {self._connection.where} cannot be used: its answer is too long, or broke off")
        headers = answer.headers
        self._reply = Reply(answer.status_code, headers.get("Content-Type") or "", headers.get("x-amzn-RequestId") or "", body)
        return botocore.awsrequest.AWSResponse(url, answer.status_code, answer.headers, _Body(body))

    def _check_address(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "https":
            return
        origin = f"{parts.scheme}://{parts.hostname}:{parts.port}"
        if not self._connection.allows_http:
            raise KeyAccessError(
                f"the endpoint {origin} is plain http, on which keys could be read: use https (or --insecure-http, for a loopback address)"
            )
        if not _names_loopback(parts.hostname or ""):
            raise KeyAccessError(f"the endpoint {origin} is plain http to another host, on which keys could be read: use https")

    def _explain_login(self, exc: Exception) -> Exception:
        """Why there are no credentials. That is not the service's word about the key: those that are held are used to their end."""
        where = self._connection.where
        if isinstance(exc, ClientError):
            return KeyServiceError(f"no credentials for {where}: {exc.operation_name} was refused; may this host assume the role?")
        if isinstance(exc, (KeyAccessError, TimeoutError, *_MISCONFIGURED)):
            return self._explain(exc)
        return KeyServiceError(f"no credentials for {where} ({type(exc).__name__}): see docs/AWS.md for where they are looked for")

    def _explain(self, exc: Exception) -> Exception:
        """What became of a call, in words that hold nothing of the request or the answer."""
        if isinstance(exc, KeyAccessError | TimeoutError):
            return exc
        where = self._connection.where
        if isinstance(exc, NoRegionError):
            return KeyAccessError("no region of AWS KMS: name the key by its ARN, or set AWS_DEFAULT_REGION or the profile's region")
        if isinstance(exc, _MISCONFIGURED):
            return KeyAccessError(
                f"the AWS configuration cannot be used ({type(exc).__name__}): see AWS_PROFILE, ~/.aws/config and AWS_CA_BUNDLE"
            )
        if isinstance(exc, SSLError):
            return KeyServiceError(
                f"the key service {where} cannot be used: its certificate is not trusted, or TLS failed; check AWS_CA_BUNDLE"
            )
        if isinstance(exc, ConnectionError | HTTPClientError):
            return KeyServiceError(f"the key service {where} cannot be reached ({type(exc).__name__}): check the endpoint and the network")
        kind = "the SDK gave up" if isinstance(exc, BotoCoreError) else "its answer is none of AWS KMS"
        return KeyServiceError(f"the key service {where} cannot be used: {kind} ({type(exc).__name__})")


class _Body:
    """A body that was read already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self._data


def _names_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
