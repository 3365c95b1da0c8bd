"""What the site has to know of this repository: which pages lie beside docs/, and where fields are described."""

import os
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# What pages link to outside docs/, and its name on the site. A link to anything else is a broken one.
BESIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    ".github/workflows/gate.yml": "gate.yml",
}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)[^)#\s]+")
EXAMPLE = re.compile(r"^>>> .*(\n.+)*", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site also has what lies beside docs/, so nothing is written twice."""
    for path, name in BESIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links lead from file to file of the repository; here they lead to the pages that are made of these files."""
    written, shown = Path(str(page.file.abs_src_path)).parent, os.path.dirname(page.file.src_uri)

    def on_the_site(link: re.Match[str]) -> str:
        target = os.path.relpath(written / link[0], ROOT)
        return os.path.relpath(BESIDE.get(target, target.removeprefix("docs/")), shown or ".")

    return LINK.sub(on_the_site, markdown)


class Docstrings(griffe.Extension):
    """Where the comment behind a field is its description, and examples are those of a Python prompt."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```python\n\g<0>\n```", obj.docstring.value)
        elif obj.is_attribute:
            _, sign, comment = obj.source.partition("  # ")
            if sign:
                obj.docstring = griffe.Docstring(comment.strip(), parent=obj)
