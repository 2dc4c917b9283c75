"""The server's page: its files as they are sent. Nothing in them is of another host, and no script is in the HTML."""

from __future__ import annotations

from pathlib import Path


def page_files() -> list[tuple[str, str, str]]:
    """(address, media type, content) of each."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    styles = Environment(loader=FileSystemLoader(here), undefined=StrictUndefined).get_template("serve.css.j2")
    return [
        ("/", "text/html", (here / "serve.html").read_text(encoding="utf-8")),
        ("/page.css", "text/css", styles.render()),
        ("/page.js", "text/javascript", (here / "serve.js").read_text(encoding="utf-8")),
    ]
