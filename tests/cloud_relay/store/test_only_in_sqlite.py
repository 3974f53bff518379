"""What is kept in SQLite only is refused by name where a store is in PostgreSQL, before anything is done."""

from pathlib import Path

import pytest

from cloud_relay.config import load_config
from protocols.base.errors import ConfigError

URL = 'url = "postgresql://localhost/records"\n'


@pytest.mark.parametrize(
    ("rest", "name"),
    [
        ("pack_after_s = 60\n", "store.pack_after_s"),
        ("pack_beyond = 60\n", "store.pack_beyond"),
    ],
)
def test_setting_for_sqlite_beside_a_url_is_refused_with_the_way_out(tmp_path: Path, rest: str, name: str) -> None:
    """Who asks for a sink and gets none would find out when its records are needed."""
    file = tmp_path / "relay.toml"
    file.write_text(f'[relay]\nid = "relay-1"\n[store]\n{URL}{rest}')
    with pytest.raises(ConfigError, match=f"{name} is for a store in SQLite only: .*remove it"):
        load_config(file)
    file.write_text(f'[relay]\nid = "relay-1"\n[store]\n{URL}')
    load_config(file)
