"""What a user gets who installs a wheel or an sdist and has no checkout."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = [
    'model-index.yml',
    *(
        path.relative_to(ROOT).as_posix()
        for folder in ('configs', 'tools')
        for path in (ROOT / folder).rglob('*')
        if path.suffix in ('.py', '.sh', '.yaml')
    ),
]


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """The working tree without what is not part of the project."""
    copy = tmp_path_factory.mktemp('source') / 'tree'
    ignore = shutil.ignore_patterns('.*_cache', '__pycache__', '.git', '.venv', 'work_dirs', 'build', '*.egg-info')
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
    return copy


def build(kind, tree, out):
    code = f'from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})'
    subprocess.run([sys.executable, '-c', code], cwd=tree, check=True, capture_output=True)


def assert_complete(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert SHIPPED and not [path for path in SHIPPED if f'mmseg_segmenter/.mim/{path}' not in names]


def test_wheel_carries_configs_tools_and_model_index(tree, tmp_path):
    build('wheel', tree, tmp_path)
    assert_complete(*tmp_path.glob('*.whl'))


def test_wheel_of_the_sdist_does_too(tree, tmp_path):
    build('sdist', tree, tmp_path)
    (sdist,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path / 'unpacked', filter='data')
    (unpacked,) = (tmp_path / 'unpacked').iterdir()
    build('wheel', unpacked, tmp_path)
    assert_complete(*tmp_path.glob('*.whl'))
