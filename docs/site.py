"""MkDocs hook: add pages from outside docs/ to the site, and adapt links between repository files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "results.md": "bench/RESULTS.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>(?:\.\./)*[\w./-]+)(?P<anchor>#[\w-]+)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point links between repository files at the site's pages; a link to any other file becomes its name."""
    source = ROOT / PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {str(ROOT / path): name for name, path in PAGES.items()}

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], (source.parent / match["path"]).resolve(), match["anchor"] or ""
        if str(target) in pages:
            return f"[{text}]({pages[str(target)]}{anchor})"
        if target.is_relative_to(ROOT / "docs"):
            return f"[{text}]({target.relative_to(ROOT / 'docs')}{anchor})"
        return text if target.exists() else match[0]

    return LINK.sub(replace, markdown)
