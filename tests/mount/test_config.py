"""`modelfs mount --config FILE`: the file gives what the command line does not."""

import json
from pathlib import Path

from tests.conftest import SealedBuilder
from tests.mount.conftest import modelfs


def test_a_mount_by_its_file_alone_and_the_command_line_wins(sealed: SealedBuilder, tmp_path: Path) -> None:
    model = sealed({"model.bin": b"weights"})
    (tmp_path / "mnt").mkdir()
    config = tmp_path / "demo.toml"
    config.write_text(
        f'sealed = "{model.path}"\nmountpoint = "mnt"\nmodel = "demo"\nkek = "file:{model.keys.kek}"\n'
        f'trust = ["{model.keys.public}"]\nworkers = 1\nmode = "400"\nstate_dir = "state"\nrenew_every = 5\nttl = 60\n'
    )
    done = modelfs("mount", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["mountpoint"] == str(tmp_path / "mnt")
    status = json.loads(modelfs("status", tmp_path / "mnt", "--json").stdout)
    assert len(status["workers"]) == 1
    assert 50 < status["lease_left_s"] <= 60
    assert (tmp_path / "mnt" / "model.bin").stat().st_mode & 0o777 == 0o400
    assert modelfs("unmount", tmp_path / "mnt").returncode == 0
    done = modelfs("mount", "--config", config, "--model", "other")
    assert done.returncode == 4
    assert "not 'other'" in done.stderr


def test_an_unknown_key_refuses_the_mount(tmp_path: Path) -> None:
    config = tmp_path / "demo.toml"
    config.write_text('mountpiont = "x"\n')
    done = modelfs("mount", "--config", config)
    assert done.returncode == 2
    assert "did you mean 'mountpoint'" in done.stderr
    assert done.stderr.count("\n") == 1
