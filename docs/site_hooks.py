"""Hooks of mkdocs: pages that lie outside of docs/, and links that hold on the site as they do in the repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "recipes/**/README.md", "egs/**/README.md")
"""Pages of the site that lie elsewhere, as patterns from the repository's root."""
MEDIA = ("egs/mini/*/*.wav", "recipes/**/*.png", "egs/**/*.png")
"""Files that these pages show."""
API = {"omnikit/interfaces.py": "api/interfaces.md"}
"""Source files that have a page of the API."""
WIDE = ("step.md", "data_rules.md", "figures.md")
"""Pages that need the room of the table of contents."""
LINK = re.compile(r"(?P<text>!?\[(?P<words>[^\]]*)\])\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
FLAG = re.compile(r"<code>(?=-[^<]{1,30}</code>)")
BAR = re.compile(r"<code>[^<]*\\\|[^<]*</code>")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and media outside of docs/ under their paths in the repository."""
    for pattern in (*PAGES, *MEDIA):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links, which are relative to the file in the repository, into links of the site."""
    uri = page.file.src_uri
    if uri in WIDE:
        page.meta["hide"] = ["toc"]
    here = posixpath.dirname(uri if page.file.generated_by else f"docs/{uri}")

    def moved(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(here, link["target"]))
        if not (ROOT / target).exists():
            return link[0]  # mkdocs says that it leads nowhere
        found = _on_site(target, files)
        if found is None:
            return f"`{target}`" if link["words"] == target else link["words"]
        relative = posixpath.relpath(found, posixpath.dirname(uri) or ".")
        return f"{link['text']}({relative}{link['anchor'] or ''})"

    pieces = CODE.split(markdown)
    return "".join(piece if CODE.fullmatch(piece) else LINK.sub(moved, piece) for piece in pieces)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keep short flags on one line, as browsers break lines after hyphens; and take out the backslash that GitHub wants
    before a bar in a table's code."""
    html = BAR.sub(lambda code: code[0].replace("\\|", "|"), html)
    return FLAG.sub('<code class="flag">', html)


def _on_site(target: str, files: Files) -> str | None:
    """Return the path on the site of a file or folder of the repository; None where it is no page."""
    inside = API.get(target) or target.removeprefix("docs/")
    for candidate in (inside, posixpath.join(inside, "README.md")):
        if files.get_file_from_path(candidate) is not None:
            return candidate
    return None
