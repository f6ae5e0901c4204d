"""What `.ci/run` and a newcomer rely on works from a fresh clone, without anything installed by hand."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'tools').rglob('*.py'))
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / 'setup.cfg')
EXTRAS = sorted({*CONFIG['options.extras_require']} - {'full'})  # pip may compile mmcv
COMMANDS = [line for line in (ROOT / '.ci/run').read_text().splitlines() if line.startswith('make ')]


def run(command: list[str], folder: Path, home: Path) -> str:
    """Run a command that sees no variables but the search path, an empty home and where pip finds packages."""
    pip = {name: value for name, value in os.environ.items() if name.startswith('PIP_')}
    env = {'PATH': os.defpath, 'HOME': str(home), **pip}
    result = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, f'{" ".join(command)}\n{result.stdout[-3000:]}'
    return result.stdout


@pytest.fixture(scope='module')
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('home')


@pytest.fixture(scope='module')
def clone(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """Return a clone of the last commit in which `make venv` has run."""
    folder = tmp_path_factory.mktemp('fresh') / 'clone'
    subprocess.run(['git', 'clone', '-q', str(ROOT), str(folder)], check=True)
    run(['make', 'venv', f'PYTHON={sys.executable}'], folder, home)
    return folder


def test_ci_runs_make_targets() -> None:
    assert COMMANDS == ['make test', 'make docs', 'make demo']


@pytest.mark.slow
def test_make_venv_installs_what_the_tools_need(clone: Path, home: Path) -> None:
    """Every tool prints its help, and the package is the one of the clone."""
    python = str(clone / '.venv/bin/python')
    where = run([python, '-c', 'import mmseg_segmenter; print(mmseg_segmenter.__file__)'], home, home)
    assert str(clone) in where
    assert len(TOOLS) >= 12
    for tool in TOOLS:
        assert 'usage:' in run([python, tool, '--help'], clone, home), tool


@pytest.mark.slow
@pytest.mark.parametrize('extra', EXTRAS)
def test_extra_fits_the_tested_versions(extra: str, clone: Path, home: Path) -> None:
    """pip finds a solution under the pins, and need not try old releases to find it."""
    pins = ['-c', 'requirements/tested.txt', '--no-build-isolation']
    run(['timeout', '240', '.venv/bin/pip', 'install', '--dry-run', *pins, f'.[{extra}]'], clone, home)


@pytest.mark.slow
@pytest.mark.parametrize('command', COMMANDS)
def test_make_venv_installs_what_ci_calls(command: str, clone: Path, home: Path) -> None:
    """All programs that a command of `.ci/run` calls are in the new environment."""
    recipe = run(['make', '--dry-run', command.removeprefix('make '), f'PYTHON={sys.executable}'], clone, home)
    programs = {word for word in recipe.split() if word.startswith('.venv/bin/')}
    assert programs or 'tools/demo.sh' in recipe
    for program in programs:
        run([program, '--version'], clone, home)


@pytest.mark.slow
def test_linting_and_a_test_pass(clone: Path, home: Path) -> None:
    run(['make', 'lint', f'PYTHON={sys.executable}'], clone, home)
    run(['.venv/bin/pytest', '-n', '2', 'tests/models/test_layers.py', 'tests/test_packaging.py'], clone, home)
