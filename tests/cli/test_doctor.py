"""`modelfs doctor --config FILE`: the errors of `modelfs mount --config`, word for word, and what it says of a file's contents."""

from pathlib import Path

import pytest

from tests.cli.conftest import Result, Run
from tests.helpers import KeySet, seal, write_tree

WRONG = {
    "unknown key": 'mountpiont = "x"\n',
    "no TOML": "model =\n",
    "kind of value": "threshold = true\n",
    "unknown key of the vault": '[vault]\nadress = "https://x"\n[vault.auth]\nmethod = "token"\npath = "t"\n',
    "secret in the file": '[vault.auth]\nmethod = "token"\npath = "t"\ntoken = "s.verysecretverysecretverys"\n',
    "model": 'model = "Not A Name"\n',
    "minimum release": "minimum_release = 0\n",
    "workers": 'workers = "many"\n',
    "mode": 'mode = "rw"\n',
    "uid": "uid = -1\n",
    "log level": 'log_level = "loud"\n',
    "ttl": "ttl = 3\n",
}


def both(run: Run, config: Path, keys: KeySet) -> tuple[Result, Result]:
    """What mount and doctor say of a file; mount with what a file may leave out."""
    base = ["/nowhere/sealed", "/nowhere/mnt", "--kek", "file:/nowhere", "--trust", keys.public]
    model = [] if "model =" in config.read_text() else ["--model", "demo"]
    return run("mount", *base, *model, "--config", config), run("doctor", "--config", config)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_as_by_mount(run: Run, keys_dir: KeySet, tmp_path: Path, case: str) -> None:
    config = tmp_path / "demo.toml"
    config.write_text(WRONG[case])
    mount, doctor = both(run, config, keys_dir)
    doctor.fails(2)
    assert doctor == mount
    assert "verysecret" not in doctor.err


def test_a_file_that_others_may_write_or_that_is_missing(run: Run, keys_dir: KeySet, tmp_path: Path) -> None:
    config = tmp_path / "demo.toml"
    config.write_text('model = "demo"\n')
    config.chmod(0o666)
    mount, doctor = both(run, config, keys_dir)
    doctor.fails(2, "chmod go-w it")
    assert doctor == mount
    run("doctor", "--config", tmp_path / "none").fails(2, "No such file")


@pytest.fixture
def config(keys_dir: KeySet, tmp_path: Path) -> Path:
    seal(keys_dir, write_tree(tmp_path / "source", {"model.bin": b"weights"}), tmp_path / "sealed")
    (tmp_path / "mnt").mkdir()
    path = tmp_path / "demo.toml"
    path.write_text(
        f'sealed = "sealed"\nmountpoint = "mnt"\nmodel = "demo"\nkek = "file:{keys_dir.kek}"\ntrust = ["{keys_dir.public}"]\n'
        'state_dir = "state"\naudit = "audit"\n'
    )
    return path


def test_everything_comes_from_the_file(run: Run, config: Path) -> None:
    done = run("doctor", "--config", config, "--json")
    assert done.code == 0, done
    levels = {check["name"]: check["level"] for check in done.json["checks"]}
    assert {levels[name] for name in ("config", "trust", "sealed", "recipient", "mountpoint", "audit", "kek")} == {"ok"}
    state = next(check for check in done.json["checks"] if check["name"] == "state-dir")
    assert str(config.parent / "state") in state["found"]
    assert not (config.parent / "audit").exists()


def test_the_command_line_wins_and_each_part_has_its_exit_code(run: Run, keys_dir: KeySet, config: Path) -> None:
    stranger = run("doctor", "--config", config, "--kek", f"file:{keys_dir.stranger_kek}")
    assert stranger.code == 2
    assert "error   recipient: the release is not wrapped for file:" in stranger.out
    missing = run("doctor", "--config", config, "--kek", "file:/nowhere/kek")
    assert missing.code == 5
    assert "error   kek: " in missing.out
    (config.parent / "mnt" / "file").write_text("")
    place = run("doctor", "--config", config)
    assert place.code == 2
    assert "error   mountpoint: " in place.out


def test_an_audit_log_is_required_and_not_named(run: Run, config: Path) -> None:
    config.write_text(config.read_text().replace('audit = "audit"', "audit_required = true"))
    assert "error   config: audit_required, and no audit" in run("doctor", "--config", config).out
    run("mount", "--config", config).fails(2, "--audit-required says nothing without --audit FILE")
