"""How Sphinx builds these pages: `make docs`, into `build/docs`."""

import tomllib
from pathlib import Path

_distribution = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]

project = _distribution["name"]
release = _distribution["version"]
copyright = "the meshnode authors, Apache-2.0"

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Pages link to source files of the repository as well as to one another; both are read on the code host too.
suppress_warnings = ["myst.xref_missing"]

html_theme = "furo"
html_title = f"{project} {release}"
