"""What a web page of another site does to a node on the computer of whoever looks at it, in a real browser."""

from pathlib import Path

import pytest

from tests.tools.browser_fixture import Browser
from tests.tools.node_fixture import RunningNode, prepare

pytestmark = pytest.mark.processes

_PAGE = """<!doctype html><meta charset=utf-8><script>
const refused = url => new Promise(done => {
  const image = new Image()
  image.onerror = () => done(true)
  image.onload = () => done(false)
  image.src = url
})
const posted = (url, body) => fetch(url, {method: "POST", mode: "no-cors", body}).then(() => true)
</script>"""


def test_page_of_another_site_holds_no_stream_and_publishes_nothing(tmp_path: Path) -> None:
    """An image needs no Origin header. Each held one of the node's streams for as long as the page was open."""
    page = tmp_path / "page.html"
    page.write_text(_PAGE)
    with RunningNode(prepare(tmp_path, "rsu-1", "rsu")) as node:
        browser = Browser(tmp_path)
        try:
            browser.open(page)
            for host in ("127.0.0.1", "localhost"):
                at = f"http://{host}:{node.http_port}"
                streams = ", ".join(f"refused('{at}/v1/readings?key=page/{n}')" for n in range(5))
                assert browser.run(f"Promise.all([{streams}])") == [True] * 5
                assert browser.run(f"""posted('{at}/v1/readings', '{{"key": "rsu/rsu-1/x", "value": 1}}')""")
        finally:
            browser.close()
        statistics = node.get("/v1/node")["statistics"]
        assert statistics["readings_published"] == 0
