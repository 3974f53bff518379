"""One self-contained HTML page of a result. :mod:`sims.report.render` is the way in."""
