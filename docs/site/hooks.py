"""What MkDocs does here besides its own work: pages from elsewhere in the tree, generated references, formulas.

A link in a page names a file of the tree, so that it also works where the tree is browsed. If the file is on the site,
the link leads there. If it is not, its text stays. A link to nothing is left to MkDocs, which fails the build.
"""

import html
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import generated

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
# File or folder of the tree → its place on the site.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "bench/LOG.md": "bench-log.md",
    "analysis/results/eiffel-tower.svg": "results/eiffel-tower.svg",
    "analysis/results/smollm2-135m": "results/smollm2-135m",
}
SUFFIXES = {".md", ".svg", ".png", ".csv"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```|^~~~.*?^~~~|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)
LOADED = r'(?:script|img|iframe|link rel="(?:stylesheet|preload|icon)")'
OTHER_HOST = re.compile(rf'<{LOADED}[^>]*(?:src|href)="https?:')
GENERATED = re.compile(r"<!-- generated: (\w+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that are elsewhere in the tree."""
    for source, target in ELSEWHERE.items():
        if not (ROOT / source).exists():
            raise FileNotFoundError(f"the site shows {source}, which does not exist")
        for path in sorted((ROOT / source).rglob("*")) if (ROOT / source).is_dir() else [ROOT / source]:
            if path.is_file() and path.suffix in SUFFIXES and not path.is_relative_to(ROOT / source / "store"):
                place = target + path.as_posix()[len((ROOT / source).as_posix()) :]
                files.append(File.generated(config, place.replace("README.md", "index.md"), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the generated parts of a page, and let its links lead to places on the site."""
    markdown = GENERATED.sub(lambda found: getattr(generated, found[1])(), markdown)
    places = {in_tree(file): file.src_uri for file in files}
    here = in_tree(page.file)

    def place(found: re.Match[str]) -> str:
        path, hash_, anchor = found[3].partition("#")
        if not path or re.match(r"\w+:", path):
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        site = places.get(target) or places.get(f"{target}/README.md") or places.get(f"{target}/index.md")
        if site is not None:
            to = posixpath.relpath(site, posixpath.dirname(page.file.src_uri) or ".")
            return f"{found[1]}[{found[2]}]({to}{hash_}{anchor})"
        if (ROOT / target).exists() and not target.startswith(DOCS):
            return found[2] if "`" in found[2] or "/" in found[2] else f"{found[2]} (`{target}`)"
        return found[0]

    parts = CODE.split(markdown)  # every second part is code
    return "".join(part if n % 2 else LINK.sub(place, part) for n, part in enumerate(parts))


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script."""

    def formula(found: re.Match[str]) -> str:
        tex = html.unescape(found[3]).strip().replace("{aligned}", "{align*}")  # the converter knows only the second
        return convert(tex, display="block" if found[2] == "[" else "inline")

    return FORMULA.sub(formula, content)


def in_tree(file: File) -> str:
    """The path of a page's source in the tree, such as docs/start.md."""
    source = file.abs_src_path or ""
    return Path(os.path.relpath(source, ROOT)).as_posix() if source else DOCS + file.src_uri


def on_post_page(output: str, *, page: Page, **_: Any) -> str:
    """Refuse a page that would load something from another host."""
    if found := OTHER_HOST.search(output):
        raise RuntimeError(f"{page.file.src_uri} loads something from the network: {found[0]}")
    return output
