"""The configuration of a relay means the same from wherever it is named."""

from pathlib import Path

import pytest

from cloud_relay.config import load_config


def test_files_of_a_configuration_are_beside_it_also_if_its_path_is_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators with two relays on a host name ``one/relay.toml``: keys and store were looked for in ``one/one``."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "relay.toml").write_text('[relay]\nid = "relay-1"\n')
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("one/relay.toml"))
    state = tmp_path / "one" / "state"
    assert (config.path, config.state_dir) == (tmp_path / "one" / "relay.toml", state)
    assert (config.store, config.sealing_key) == (state / "relay.sqlite", state / "sealing.key")
    assert config.credentials.key == tmp_path / "one" / "relay-1.key"
