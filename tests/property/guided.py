"""One target of targets.py under a coverage-guided fuzzer: `python -m tests.property.guided NAME DIRECTORY [libFuzzer options]`."""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["modelfs"]):
    from tests.property.targets import make_targets
from tests.helpers import KeySet


def main() -> None:
    name, base = sys.argv[1], Path(sys.argv[2])
    (base / "keys").mkdir()
    target = make_targets(base / "targets", KeySet.generate(base / "keys"))[name]
    corpus = base / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), *sys.argv[3:]], lambda data: target.check(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
