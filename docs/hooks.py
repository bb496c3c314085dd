"""For mkdocs: README.md and ARCHITECTURE.md become pages, and links to files that are no pages become their paths.

The documents are written for GitHub, where a link may lead to any file of the repository. The site has only docs/.
"""

import re
from os.path import normpath, relpath
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"overview.md": "README.md", "ARCHITECTURE.md": "ARCHITECTURE.md"}  # README.md would replace index.md
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*|)\)")


def on_files(files: Any, config: Any) -> None:
    from mkdocs.structure.files import File

    for uri, source in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    uri = page.file.src_uri
    folder = Path(PAGES.get(uri, f"docs/{uri}")).parent

    def site_link(link: re.Match[str]) -> str:
        text, address, anchor = link.groups()
        path = normpath(folder / address)
        if not address or re.match(r"https?:", address) or not (ROOT / path).exists():
            return link[0]  # mkdocs reports it if it is dead
        target = next((page for page, name in PAGES.items() if name == path), path.removeprefix("docs/"))
        if files.get_file_from_path(target):
            return f"[{text}]({relpath(target, Path(uri).parent)}{anchor})"
        return text if text.strip("`") in path else f"{text} (`{path}`)"

    return LINK.sub(site_link, markdown)
