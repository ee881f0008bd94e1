"""The manifest: what a publisher signs, and the plan of an unfinished seal (docs/FORMAT.md sections 3 and 7)."""

import itertools
from typing import Literal, Self

from pydantic import model_validator

from modelfs.format import canonical
from modelfs.format.fields import BlockSize, FileSize, HexDigest, HexId, ModelName, Release, Time
from modelfs.format.geometry import Geometry, geometry
from modelfs.format.limits import MAX_INDEX_SIZE, MAX_MANIFEST_SIZE, MAX_PLAN_SIZE

MANIFEST_TYPE = "application/vnd.modelfs.manifest+json"
PLAN_TYPE = "application/vnd.modelfs.plan+json"

DigestName = Literal["blake3", "sha256"]


class BlobEntry(canonical.CanonicalModel):
    """One blob as the manifest names it."""

    id: HexId
    root: HexDigest
    size: FileSize


class Manifest(canonical.CanonicalModel):
    """The signed root of trust of one release."""

    blobs: list[BlobEntry]
    block_size: BlockSize
    cipher: Literal["AES-256-GCM"]
    created: Time
    digest: DigestName
    expires: Time | None
    format: Literal["modelfs/1"]
    index: HexId
    key_commitment: HexDigest
    key_id: HexId
    model: ModelName
    release: Release

    @model_validator(mode="after")
    def _check(self) -> Self:
        ids = [blob.id for blob in self.blobs]
        if any(a >= b for a, b in itertools.pairwise(ids)):
            raise ValueError("blobs are not sorted by id without duplicates")
        if self.index not in ids:
            raise ValueError("the index is not among the blobs")
        if self.index_blob.size > MAX_INDEX_SIZE:
            raise ValueError(f"the index is more than {MAX_INDEX_SIZE} bytes")
        for blob in self.blobs:
            geometry(blob.size, self.block_size)
        return self

    @property
    def index_blob(self) -> BlobEntry:
        """The blob that is the index."""
        return next(blob for blob in self.blobs if blob.id == self.index)

    def geometry(self, blob: BlobEntry) -> Geometry:
        """Sizes of `blob`."""
        return geometry(blob.size, self.block_size)


def without_blobs(manifest: Manifest) -> Manifest:
    """A manifest that names none but the index: what a long-lived process keeps once the other blobs lie elsewhere."""
    return manifest.model_copy(update={"blobs": [manifest.index_blob]})


class Plan(canonical.CanonicalModel):
    """What an unfinished seal or rotation has decided; signed, so that nobody who writes the store can plant one."""

    block_size: BlockSize
    digest: DigestName
    format: Literal["modelfs/1"]
    key_commitment: HexDigest
    key_id: HexId
    model: ModelName
    recipients: HexDigest
    """`keysfile.names_digest` of those that the DEK was wrapped for: pending/keys.json, which is not signed, could say less."""
    release: Release
    rotates: HexDigest | None
    """SHA-256 of the signed payload of the release that is encrypted anew; None for a seal."""


def parse_manifest(payload: bytes) -> Manifest:
    """Parse a manifest from the payload of an envelope whose signatures are verified; errors as `canonical.parse`."""
    return canonical.parse(Manifest, payload, MAX_MANIFEST_SIZE, "the manifest")


def parse_plan(payload: bytes) -> Plan:
    """Parse a plan from the payload of an envelope whose signature is verified; errors as `canonical.parse`."""
    return canonical.parse(Plan, payload, MAX_PLAN_SIZE, "pending/plan.json")
