"""Hooks of MkDocs that make pages of README.md, CONTRIBUTING.md and CHANGELOG.md.

Links in these and in ``docs/`` are those of the repository, so that they work where it is read. On the pages, links to
other files of the repository become plain text, since the pages do not contain them.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {'README.md': 'index.md', 'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md'}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of files outside ``docs/``."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding='utf-8')
        files.append(File.generated(config, page, content=_with_links_of_pages(text, '', page)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of a page in ``docs/`` to pages."""
    if page.file.src_uri in PAGES.values():
        return markdown
    return _with_links_of_pages(
        markdown, posixpath.join('docs', posixpath.dirname(page.file.src_uri)), page.file.src_uri
    )


def _with_links_of_pages(markdown: str, folder: str, page: str) -> str:
    """Rewrite the links of a file in ``folder`` of the repository for the page that it becomes."""

    def rewritten(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, hash_, anchor = target.partition('#')
        if not path or re.match(r'[a-z]+:', target):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, path))
        if path in PAGES:
            path = PAGES[path]
        elif path.startswith('docs/'):
            path = path.removeprefix('docs/')
        else:
            return text
        return f'{image}[{text}]({posixpath.relpath(path, posixpath.dirname(page) or ".")}{hash_}{anchor})'

    parts = re.split(r'(^ *```.*?^ *```)', markdown, flags=re.S | re.M)  # code blocks have odd numbers
    parts[::2] = [re.sub(r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)', rewritten, part) for part in parts[::2]]
    return ''.join(parts)


class Roles(griffe.Extension):
    """Turn roles of Sphinx in docstrings, such as ``:class:`Segmenter```, into code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r':\w+:`[~.]*([^`]+)`', r'``\1``', obj.docstring.value)
