"""What a user gets who installs a wheel and has no checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_wheel_carries_configs_and_tools(tmp_path):
    subprocess.run(['git', 'clone', '-q', '--depth=1', f'file://{ROOT}', tmp_path / 'clone'], check=True)
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp_path, '.']
    subprocess.run(command, cwd=tmp_path / 'clone', check=True)
    (wheel,) = tmp_path.glob('mmseg_segmenter-*.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('configs', 'tools'):
        committed = subprocess.run(['git', 'ls-files', folder], cwd=ROOT, capture_output=True, text=True, check=True)
        missing = {f'mmseg_segmenter/.mim/{path}' for path in committed.stdout.split()} - names
        # What is not committed yet is not in the clone either.
        assert not {m for m in missing if (tmp_path / 'clone' / m.removeprefix('mmseg_segmenter/.mim/')).exists()}
        assert any(name.startswith(f'mmseg_segmenter/.mim/{folder}/') for name in names)
