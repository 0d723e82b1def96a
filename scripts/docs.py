"""Builds the documentation site in `build/site`, and fails on a broken link: `make docs`.

The site is made of `docs/` and of the documents at the repository's root. Their links are rewritten to
the site's pages; a link to a source file becomes plain text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Documents outside docs/ → their page of the site."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def collect(target: Path) -> list[str]:
    """Copies all documents into one folder.

    Returns:
        Links in the documents that lead to no file of the repository.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(REPOSITORY / "docs", target)
    documents = {path: f"docs/{path.relative_to(target).as_posix()}" for path in target.rglob("*.md")}
    documents |= {target / page: source for source, page in PAGES.items()}
    broken = []
    for path, source in documents.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")

        def rewrite(found: re.Match[str], path: Path = path, source: str = source) -> str:
            image, label, link, anchor = found.groups()
            file = ((REPOSITORY / source).parent / link).resolve()
            if not file.exists():
                broken.append(f"{source}: {link}")
            name = file.relative_to(REPOSITORY).as_posix()
            if name.startswith("docs/"):
                page = target / name.removeprefix("docs/")
            elif name in PAGES or f"{name}/README.md" in PAGES:
                page = target / PAGES.get(name, PAGES.get(f"{name}/README.md", ""))
            else:  # a source file: named, but not part of the site
                return f"{label}"
            up = "../" * len(path.parent.relative_to(target).parts)
            return f"{image}[{label}]({up}{page.relative_to(target).as_posix()}{anchor or ''})"

        path.write_text(_LINK.sub(rewrite, text), encoding="utf-8")
    return broken


class _Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def broken_links(site: Path) -> list[str]:
    """Links between the site's pages that lead to no file or no anchor."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links start at the site's root
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            anchor = unquote(parts.fragment)
            if not file.exists() or (anchor and file in pages and anchor not in pages[file].anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def main() -> int:
    """Returns the exit code: 1 where the build fails or a link is broken."""
    broken = collect(REPOSITORY / "build" / "docs")
    command = (Path(sys.executable).parent / "zensical", "build", "--clean", "--strict")
    code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    if code == 0:
        broken += broken_links(REPOSITORY / "build" / "site")
    for link in broken:
        print(f"broken link: {link}", file=sys.stderr)
    return int(code != 0 or bool(broken))


if __name__ == "__main__":
    sys.exit(main())
