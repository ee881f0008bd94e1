#!/usr/bin/env python3
"""Independent decryptor and verifier of a sealed model, written from docs/FORMAT.md alone; simple, not fast.

Does: verify signatures, manifest and the digest tree of every blob; with a KEK of scheme `file` also decrypt and check every
file, and write the tree. Does not: remember releases (no rollback check), know other key schemes, or repeat every rule of the
format about names and limits: it holds the cryptography and the layout against the specification.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

TYPE = "application/vnd.modelfs.manifest+json"
CURVES = {"secp256r1": ec.ECDSA(hashes.SHA256()), "secp384r1": ec.ECDSA(hashes.SHA384())}
FIELDS = "block_size blobs cipher created digest expires format index key_commitment key_id model release"


def need(ok: object, problem: str) -> None:
    if not ok:
        raise ValueError(problem)


def small(path: Path, limit: int) -> bytes:
    need(path.is_file() and path.stat().st_size <= limit, f"{path}: not a file of at most {limit} bytes")
    return path.read_bytes()


def dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def parse(raw: bytes, what: str) -> Any:
    value = json.loads(raw)
    need(dump(value) == raw, f"{what}: not canonical JSON")
    return value


def hkdf(key: bytes, salt: bytes, info: str, length: int = 32) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, f"modelfs/1/{info}".encode()).derive(key)


def verifies(key: Any, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, *([CURVES[key.curve.name]] if hasattr(key, "curve") else []))
        return True
    except InvalidSignature:
        return False


def read_manifest(sealed: Path, pems: list[Path], threshold: int) -> dict[str, Any]:
    envelope = json.loads(small(sealed / "manifest.json", 2**26))
    need(envelope["payloadType"] == TYPE, "manifest.json: wrong payloadType")
    payload = base64.b64decode(envelope["payload"], validate=True)
    keys = [serialization.load_pem_public_key(small(pem, 2**14)) for pem in pems]
    der = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    distinct = {key.public_bytes(*der): key for key in keys}.values()
    pae = b"DSSEv1 %d %b %d %b" % (len(TYPE), TYPE.encode(), len(payload), payload)
    signatures = [base64.b64decode(entry["sig"], validate=True) for entry in envelope["signatures"]]
    good = sum(any(verifies(key, signature, pae) for signature in signatures) for key in distinct)
    need(1 <= threshold <= good, f"manifest.json: signed by {good} trusted keys, threshold {threshold}")
    m: dict[str, Any] = parse(payload, "manifest")
    need(sorted(m) == sorted(FIELDS.split()) and m["format"] == "modelfs/1", "manifest: other fields or another format")
    need(m["cipher"] == "AES-256-GCM" and m["digest"] in ("blake3", "sha256"), "manifest: unknown cipher or digest")
    need(2**12 <= m["block_size"] <= 2**22 and m["block_size"].bit_count() == 1, "manifest: bad block_size")
    ids = [blob["id"] for blob in m["blobs"]]
    need(ids == sorted(set(ids)) and m["index"] in ids, "manifest: blobs not sorted, not distinct, or without the index")
    need(not m["expires"] or datetime.now(UTC) < datetime.fromisoformat(m["expires"]), f"expired at {m['expires']}")
    return m


def hasher(m: dict[str, Any], data: bytes = b"") -> Any:
    return blake3(data) if m["digest"] == "blake3" else hashlib.sha256(data)


def stored_blocks(sealed: Path, m: dict[str, Any], blob: dict[str, Any]) -> Iterator[bytes]:
    """Every block as stored, each checked against the digest tree."""
    size, step = blob["size"], m["block_size"]
    count = max(1, -(-size // step))
    pages = -(-count // 4096)
    data, tree = sealed / "blobs" / blob["id"], sealed / "blobs" / f"{blob['id']}.digests"
    need(data.is_file() and data.stat().st_size == size + 16 * count, f"{data}: not a file of {size + 16 * count} bytes")
    leaves = tree.read_bytes()[32 * pages :] if count > 1 else hasher(m, b"\0" + data.read_bytes()).digest()
    sums = b"".join(hasher(m, b"\1" + leaves[at : at + 131072]).digest() for at in range(0, len(leaves), 131072))
    need(len(leaves) == 32 * count and hasher(m, b"\2" + sums).hexdigest() == blob["root"], f"{data}: not the signed root")
    need(count == 1 or tree.read_bytes()[: 32 * pages] == sums, f"{tree}: page digests do not fit")
    with open(data, "rb") as file:
        for i in range(count):
            block = file.read(min(step, size - i * step) + 16)
            need(hasher(m, b"\0" + block).digest() == leaves[32 * i : 32 * i + 32], f"{data}: block {i} is not the signed one")
            yield block


def plaintext(sealed: Path, m: dict[str, Any], blob: dict[str, Any], key: bytes) -> Iterator[bytes]:
    count = max(1, -(-blob["size"] // m["block_size"]))
    aad = b"modelfs/1\0" + bytes.fromhex(blob["id"]) + count.to_bytes(8, "big") + blob["size"].to_bytes(8, "big")
    for i, block in enumerate(stored_blocks(sealed, m, blob)):
        yield AESGCM(key).decrypt(i.to_bytes(11, "big") + bytes([i == count - 1]), block, aad)


def unwrap(sealed: Path, m: dict[str, Any], kek: bytes) -> bytes:
    keys = parse(small(sealed / "keys" / f"{m['key_commitment']}.json", 2**20), "keys")
    me, wrap = hkdf(kek, b"", "kek-file-id", 8).hex(), AESGCM(hkdf(kek, b"", "kek-file-wrap"))
    for entry in [entry for entry in keys["recipients"] if (entry["scheme"], entry["key_ref"]) == ("file", me)][:16]:
        wrapped = base64.b64decode(entry["wrapped"], validate=True)
        dek = wrap.decrypt(wrapped[:12], wrapped[12:], dump(["modelfs/1", m["model"], m["key_id"]]))
        if hmac.compare_digest(hkdf(dek, b"", "commitment").hex(), m["key_commitment"]):
            return dek
    raise ValueError("keys: no recipient that this KEK opens to the committed key")


def decrypt(sealed: Path, m: dict[str, Any], dek: bytes, out: Path | None) -> str:
    blobs = {blob["id"]: blob for blob in m["blobs"]}
    key = hkdf(dek, bytes.fromhex(m["index"]), "index")
    entries = parse(b"".join(plaintext(sealed, m, blobs[m["index"]], key)), "index")["entries"]
    files = [entry for entry in entries if entry["kind"] == "file"]
    signed = sorted((blob["id"], blob["size"]) for blob in m["blobs"] if blob["id"] != m["index"])
    need(sorted((entry["blob"], entry["size"]) for entry in files) == signed, "index and manifest name other blobs")
    for entry in entries[1:]:
        need(not {"", ".", ".."} & set(entry["path"].split("/")), f"index: bad path {entry['path']!r}")
    for entry in entries:
        target = out / entry["path"] if out else Path(os.devnull)
        if entry["kind"] == "dir" and out:
            target.mkdir(mode=0o700)
        elif entry["kind"] == "file":
            whole = hasher(m)
            with open(target, "xb" if out else "wb") as file:
                for data in plaintext(sealed, m, blobs[entry["blob"]], bytes.fromhex(entry["key"])):
                    whole.update(data)
                    file.write(data)
            need(whole.hexdigest() == entry["digest"], f"{entry['path']!r}: not the signed plaintext")
    for entry in reversed(entries if out else []):  # links last, so that none is written through; modes after contents
        target = Path(f"{out}/{entry['path']}")
        if entry["kind"] == "symlink":
            target.symlink_to(entry["target"])
        else:
            target.chmod(entry["mode"])
        os.utime(target, ns=(entry["mtime"], entry["mtime"]), follow_symlinks=False)
    return f"decrypted {len(files)} files, {sum(entry['size'] for entry in files)} bytes"


def main() -> int:
    parser = argparse.ArgumentParser(description="Verify, and with a KEK decrypt, a sealed model.")
    parser.add_argument("sealed", type=Path)
    parser.add_argument("--trust", type=Path, action="append", required=True, help="PEM public key; may be repeated")
    parser.add_argument("--threshold", type=int, default=1, help="distinct trusted keys that must have signed")
    parser.add_argument("--kek", type=Path, help="file of 32 bytes: decrypt too")
    parser.add_argument("--out", type=Path, help="directory to make, for the decrypted tree")
    args = parser.parse_args()
    try:
        m = read_manifest(args.sealed, args.trust, args.threshold)
        for blob in m["blobs"]:
            for _ in stored_blocks(args.sealed, m, blob):
                pass
        print(f"verified {m['model']} release {m['release']}: {len(m['blobs'])} blobs")
        if args.kek:
            print(decrypt(args.sealed, m, unwrap(args.sealed, m, small(args.kek, 32)), args.out))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, InvalidTag) as exc:
        print(f"error: {' '.join(str(exc).split()) or 'authentication failed'} ({type(exc).__name__})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
