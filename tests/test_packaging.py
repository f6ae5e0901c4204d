"""An installed wheel or sdist is complete, and its dependencies are declared."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = [
    'mmseg_segmenter/py.typed',
    'mmseg_segmenter/.mim/model-index.yml',
    *(
        f'mmseg_segmenter/.mim/{path.relative_to(ROOT).as_posix()}'
        for folder in ('configs', 'tools')
        for path in (ROOT / folder).rglob('*')
        if path.suffix in ('.py', '.sh', '.yaml')
    ),
]


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the working tree without generated files."""
    copy = tmp_path_factory.mktemp('source') / 'tree'
    ignore = shutil.ignore_patterns('.*_cache', '__pycache__', '.git', '.venv', 'work_dirs', 'build', '*.egg-info')
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
    return copy


def build(kind: str, tree: Path, out: Path) -> None:
    code = f'from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})'
    subprocess.run([sys.executable, '-c', code], cwd=tree, check=True, capture_output=True)


def assert_complete(wheel: Path) -> None:
    assert len(SHIPPED) > 70
    assert not set(SHIPPED) - set(zipfile.ZipFile(wheel).namelist())


def test_wheel_is_complete(tree: Path, tmp_path: Path) -> None:
    build('wheel', tree, tmp_path)
    assert_complete(*tmp_path.glob('*.whl'))


def test_wheel_built_from_the_sdist_is_complete(tree: Path, tmp_path: Path) -> None:
    build('sdist', tree, tmp_path)
    (sdist,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path / 'unpacked', filter='data')
    (unpacked,) = (tmp_path / 'unpacked').iterdir()
    build('wheel', unpacked, tmp_path)
    assert_complete(*tmp_path.glob('*.whl'))


# Distributions whose import has another name.
DISTRIBUTIONS = {
    'cv2': 'opencv-python',
    'mmcv': 'mmcv-lite',
    'mmseg': 'mmsegmentation',
    'PIL': 'pillow',
    'yaml': 'pyyaml',
}


def requirements(text: str) -> set[str]:
    """Return the names in a list of requirements, one on each line."""
    return set(re.findall(r'^[A-Za-z][\w.-]*', text, re.M))


def imports(folder: str) -> Iterator[tuple[Path, str, bool]]:
    """Yield file, top-level module, and whether importing the file imports it, for every absolute import."""
    for path in (ROOT / folder).rglob('*.py'):
        tree = ast.parse(path.read_text())
        # An example is a program of its own, which needs the extra that its page names.
        at_import = set() if path.parent.name == 'examples' else {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.split('.')[0], id(node) in at_import) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module is not None
                yield path, node.module.split('.')[0], id(node) in at_import


@pytest.mark.parametrize('folder', ['mmseg_segmenter', 'tools'])
def test_every_import_is_declared(folder: str) -> None:
    """Imports at the top of a file are required ones; imports inside functions may be of an extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    # without mmcv, importing the package says which of the two extras to install
    required = requirements(config['options']['install_requires']) | {'mmcv-lite'}
    optional = required.union(*(requirements(extra) for extra in config['options.extras_require'].values()))
    found = set()
    for path, module, at_import in imports(folder):
        if module in sys.stdlib_module_names or module == 'mmseg_segmenter':
            continue
        distribution = DISTRIBUTIONS.get(module, module)
        assert distribution in (required if at_import else optional), f'{path} imports {module}, not in setup.cfg'
        found.add(distribution)
    assert found


def test_tested_versions_cover_what_is_installed_for_development() -> None:
    """`make venv` installs the package with the extras lite and dev under the constraints of this file."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    extras = config['options.extras_require']
    wanted = requirements(config['options']['install_requires'] + extras['lite'] + extras['dev'])
    assert wanted <= requirements((ROOT / 'requirements/tested.txt').read_text())


def test_extras_are_sorted() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    extras = config['options.extras_require']
    assert list(extras) == sorted(extras)
    for name, packages in extras.items():
        assert packages.split('\n') == sorted(packages.split('\n')), name
