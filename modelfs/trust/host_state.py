"""What this host has served: one small file per model, which makes a replayed older release fail (DESIGN: rollback and mix-up)."""

import contextlib
import fcntl
import os
from pathlib import Path

from modelfs.errors import ConfigError, FormatError, RollbackError
from modelfs.format import canonical
from modelfs.format.fields import HexDigest, ModelName, Release
from modelfs.format.limits import KIB
from modelfs.trust.release import VerifiedRelease

MAX_SEEN_SIZE = 4 * KIB


class Seen(canonical.CanonicalModel):
    """The newest release that this host has served of one model."""

    model: ModelName
    payload_digest: HexDigest
    release: Release


class HostState:
    """The directory of `Seen` files (`--state-dir`)."""

    def __init__(self, directory: Path) -> None:
        """Nothing is read or made yet."""
        self.directory = directory

    def _path(self, model: str) -> Path:
        return self.directory / f"{model}.json"

    def seen(self, model: str) -> Seen | None:
        """What this host remembers of `model`.

        Raises:
            ConfigError: The file is there and cannot be read or believed; forgetting is the operator's decision.
        """
        path = self._path(model)
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_SEEN_SIZE + 1)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise ConfigError(
                f"cannot read the host's memory {path}: {os.strerror(exc.errno or 0)}; mend it, or choose another --state-dir"
            ) from exc
        try:
            seen = canonical.parse(Seen, data, MAX_SEEN_SIZE, str(path))
        except FormatError as exc:
            raise ConfigError(f"{exc}; if that is no attack, `modelfs forget {model}` starts anew") from exc
        if seen.model != model:
            raise ConfigError(f"{path} is about {seen.model!r}; if that is no attack, `modelfs forget {model}` starts anew")
        return seen

    def check(self, release: VerifiedRelease) -> None:
        """Raise RollbackError if this host has served a newer release, or another payload of the same one."""
        manifest = release.manifest
        seen = self.seen(manifest.model)
        if seen is None or manifest.release > seen.release:
            return
        if manifest.release < seen.release:
            raise RollbackError(
                f"release {manifest.release} of {manifest.model} is older than release {seen.release}, which this host has "
                f"served: fetch the newer one, or if the older one is wanted, `modelfs forget {manifest.model}`"
            )
        if release.payload_digest != seen.payload_digest:
            raise RollbackError(
                f"release {manifest.release} of {manifest.model} has another content than the release {seen.release} that this "
                f"host has served: ask the publisher, or if this one is right, `modelfs forget {manifest.model}`"
            )

    def record(self, release: VerifiedRelease) -> None:
        """Remember a release, durably, before it is served.

        Raises:
            RollbackError: As `check`, which is repeated here: another mount may have recorded a newer release meanwhile.
            ConfigError: The state directory cannot be written.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise ConfigError(
                f"cannot use the host's memory {self.directory}: {os.strerror(exc.errno or 0)}; choose another --state-dir"
            ) from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.check(release)
            self._write(release)
        finally:
            os.close(lock)

    def _write(self, release: VerifiedRelease) -> None:
        manifest = release.manifest
        seen = Seen(model=manifest.model, payload_digest=release.payload_digest, release=manifest.release)
        if self.seen(manifest.model) == seen:
            return
        path = self._path(manifest.model)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            try:
                with open(temporary, "xb") as file:
                    file.write(canonical.serialize(seen))
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
            directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as exc:
            raise ConfigError(f"cannot write the host's memory {path}: {os.strerror(exc.errno or 0)}; choose another --state-dir") from exc

    def forget(self, model: str) -> bool:
        """Forget a model; whether anything was remembered."""
        try:
            os.unlink(self._path(model))
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise ConfigError(f"cannot remove {self._path(model)}: {os.strerror(exc.errno or 0)}") from exc
        return True
