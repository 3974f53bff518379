"""The dashboards for Grafana show something: each expression asks for metrics that a real node and a real relay have.

There is no Grafana among Debian's packages, so the files are held against the rules of its format that a person would
notice: panels without a data source, on top of one another, or with variables that nobody declares.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.tools.node_fixture import RunningNode, prepare
from tests.tools.relay_fixture import RelayProcess
from tests.tools.relay_http_fixture import asked

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs/dashboards"
DASHBOARDS: Final = sorted(path.stem for path in FOLDER.glob("*.json"))
UNITS: Final = frozenset({"short", "bytes", "s", "ops", "reqps", "Bps", "percentunit"})
"""Those of Grafana that we use."""
BUILT_IN: Final = frozenset({"__rate_interval", "__interval", "__range"})
_WORDS: Final = frozenset({
    "and", "or", "on", "by", "sum", "min", "max", "count", "rate", "increase", "time", "vector", "histogram_quantile",
})  # fmt: skip
_SUFFIXES: Final = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


def dashboard(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return content


def expressions(name: str) -> list[str]:
    """Each expression, and each metric that a variable is made of."""
    board = dashboard(name)
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    variables = [each for each in board["templating"]["list"] if each["type"] == "query"]
    return found + [re.findall(r"label_values\((\w+),", each["definition"])[0] for each in variables]


def metrics_in(expression: str) -> set[str]:
    """The names of metrics in an expression of PromQL."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|on) ?\([^)]*\)", " ", expression)
    return set(re.findall(r"[a-z_]\w*", bare)) - _WORDS


def names_of(exposition: str) -> Iterator[str]:
    """The names that may stand in an expression."""
    for family in text_string_to_metric_families(exposition):
        for suffix in _SUFFIXES.get(family.type, ("",)):
            yield family.name + suffix


@pytest.fixture(name="known", scope="module")
def given_known(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The metrics of a node and of a relay."""
    folder = tmp_path_factory.mktemp("dashboards")
    (folder / "relay.toml").write_text('[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n[http]\nport = 0\n')
    with RelayProcess(folder) as relay, RunningNode(prepare(folder / "mesh", "rsu-1", "rsu")) as node:
        port = urlsplit(relay.http_url or "").port
        assert port is not None
        pages = [asked(each, "/metrics").body.decode() for each in (port, node.http_port)]
    return {name for page in pages for name in names_of(page)}


@pytest.mark.processes
@pytest.mark.parametrize("name", DASHBOARDS)
def test_expressions_ask_for_metrics_that_exist(known: set[str], name: str) -> None:
    """A panel about a metric that was renamed stays empty, which looks like peace."""
    asked_for = {metric for expression in expressions(name) for metric in metrics_in(expression)}
    assert len(asked_for) > 10
    assert sorted(asked_for - known) == []


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_what_grafana_needs(name: str) -> None:
    """Grafana shows a wrong file as an empty page."""
    board = dashboard(name)
    assert (board["schemaVersion"], board["uid"]) == (39, f"mesh-{name}")
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    declared = {each["name"] for each in board["templating"]["list"]}
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not own & cells, panel["title"]
        cells |= own
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["datasource"]["uid"] == "${source}"
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        for target in panel["targets"]:
            used = set(re.findall(r"\$\{?(\w+)", target["expr"] + target["datasource"]["uid"]))
            assert used <= declared | BUILT_IN, panel["title"]


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool of Debian's package prometheus is missing")
@pytest.mark.parametrize("name", DASHBOARDS)
def test_prometheus_understands_every_expression(tmp_path: Path, name: str) -> None:
    """What Prometheus can't parse is an error on somebody's wall."""
    filled = [
        expression.replace("$__rate_interval", "1m").replace("$instance", ".*") for expression in expressions(name)
    ]
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(filled)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": name, "rules": rules}]}))  # JSON is YAML, too
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
