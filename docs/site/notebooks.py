"""MkDocs hook: notebooks become pages, as they are committed, without a script or a style from elsewhere.

nbconvert makes Markdown and pictures of each. The notebook itself stays in the site, to be downloaded. In mkdocs.yml:

    hooks: [notebooks.py]
    nav: [tutorials/1-where-is-a-fact.md, …]

A link to NAME.ipynb, which works where a repository is browsed, leads to the page on the site.
"""

import re
from pathlib import PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

LINK = re.compile(r"(\]\((?!\w+:)[^)#\s]+)\.ipynb([)#])")
# A table of pandas brings its own style, which the site has for all tables.
STYLE = re.compile(r"<style scoped>.*?</style>\s*", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every notebook, and the pictures in it."""
    for file in list(files):
        if not file.src_uri.endswith(".ipynb"):
            continue
        place = PurePosixPath(file.src_uri)
        text, parts = MarkdownExporter().from_filename(file.abs_src_path)
        for name, content in parts["outputs"].items():
            # Its name says whose it is, because all notebooks of a folder call theirs output_N_0.png.
            picture = f"{place.stem}-{name}"
            text = text.replace(f"({name})", f"({picture})")
            files.append(File.generated(config, str(place.with_name(picture)), content=content))
        page = STYLE.sub("", text) + f"\n---\n\n[Download this page as a notebook]({place.name}){{ download }}\n"
        files.append(File.generated(config, str(place.with_suffix(".md")), content=page))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages."""
    download = re.compile(r"^\[Download this page.*$", re.MULTILINE)
    kept = download.search(markdown)
    linked = LINK.sub(r"\1.md\2", download.sub("", markdown))
    return linked if kept is None else f"{linked}\n{kept[0]}\n"
