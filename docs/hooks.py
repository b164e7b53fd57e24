# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What mkdocs does for these pages beyond its plugins.

- `<!-- include FILE -->` stands for a Markdown file of the checkout, without its title.
- Pictures under `results/` become part of the site. The pages name them as they lie in the checkout, so that they also
  show where the repository is browsed.
- In docstrings, [`name`] links to the name's place in the reference.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


ROOT = Path(__file__).parents[1]
_INCLUDE = re.compile(r"<!-- include (\S+) -->")
_REFERENCE = re.compile(r"\[<code>([\w.]+)</code>\](?!\()")
_IDENTIFIER = re.compile(r'id="(sparsejepa_hf[\w.]*)"')


def on_files(files: Files, config: Any) -> Files:
    """Adds the pictures of the results."""
    for picture in sorted((ROOT / "results").glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Includes files, then points at the pictures where the site has them."""
    markdown = _INCLUDE.sub(lambda found: (ROOT / found[1]).read_text(encoding="utf-8").split("\n", 1)[1], markdown)
    return markdown.replace("](../results/", "](pictures/")


def on_env(env: Any, config: Any, files: Files) -> Any:
    """Turns the references of docstrings into what mkdocs-autorefs resolves, or into plain code where it cannot."""
    pages = [file.page for file in files.documentation_pages() if file.page is not None]
    known = {name.rsplit(".", 1)[-1]: name for page in pages for name in _IDENTIFIER.findall(page.content)}

    def link(found: re.Match[str]) -> str:
        identifier = known.get(found[1].rsplit(".", 1)[-1])
        code = f"<code>{found[1]}</code>"
        return f'<autoref identifier="{identifier}" optional>{code}</autoref>' if identifier else code

    for page in pages:
        page.content = _REFERENCE.sub(link, page.content)
    return env
