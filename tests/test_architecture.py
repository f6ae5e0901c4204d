"""Imports between the parts of the package point downwards, as docs/architecture.md says."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / 'mmseg_segmenter'
# From the bottom to the top. A part may import the parts of earlier lines.
LAYERS = [
    ['errors', '__version__'],
    ['files', 'labels', 'names', 'tables', 'command_line', 'compat'],
    ['models'],
    ['checkpoints'],
    ['engine'],
    ['deployment'],
    ['visualization'],
    ['datasets', 'evaluation'],
    ['apis'],
    ['analysis'],
    ['app'],
    ['drop_in', '__init__'],
]
MODEL_LAYERS = [
    ['layers'],
    ['dense', 'load_report'],
    ['losses'],
    ['backbones', 'decode_heads'],
    ['segmentors'],
    ['__init__'],
]


def imports(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield (importing part, imported part, file) for the relative imports between the parts of a folder."""
    for path in sorted(folder.rglob('*.py')):
        relative = path.relative_to(folder)
        if '.mim' in relative.parts:
            continue
        part = relative.parts[0].removesuffix('.py')
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level != len(relative.parts):
                continue  # below or above the folder
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((part, name.partition('.')[0], path) for name in names if name.partition('.')[0] != part)


def assert_downwards(folder: Path, layers: list[list[str]], at_least: int) -> None:
    rank = {part: i for i, layer in enumerate(layers) for part in layer}
    found = list(imports(folder))
    assert len(found) >= at_least
    assert not [f'{path}: {target}' for part, target, path in found if rank[target] >= rank[part]]


def test_parts_of_the_package() -> None:
    assert_downwards(PACKAGE, LAYERS, at_least=80)


def test_parts_of_the_models() -> None:
    assert_downwards(PACKAGE / 'models', MODEL_LAYERS, at_least=12)


def test_checkpoints_use_plain_functions_of_models() -> None:
    """Only the verification builds a model; the rest needs to know key names alone."""
    users = {
        path.relative_to(PACKAGE / 'checkpoints').as_posix()
        for part, target, path in imports(PACKAGE)
        if part == 'checkpoints' and target == 'models'
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or '').startswith('models')
        and any(alias.name[0].isupper() and not alias.name.isupper() for alias in node.names)
    }
    assert users == {'verify.py'}


def test_tools_are_imported_by_nothing() -> None:
    for path in PACKAGE.rglob('*.py'):
        names = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name and name.split('.')[0] in ('tools', 'tests')], path
