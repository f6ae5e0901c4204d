"""The converters on bad sources and destinations: one line, nothing executed, nothing left behind."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import official
import pytest
import torch
from converters import timm2mmseg
from evil import Evil
from forked_tool import run_tool

from mmseg_segmenter.checkpoints import official_run
from mmseg_segmenter.checkpoints.convert import convert_encoder
from mmseg_segmenter.checkpoints.official_run import convert_official_run
from mmseg_segmenter.files import write_atomically, write_text

TOOLS = Path(__file__).parents[2] / 'tools' / 'model_converters'
NPZ = Path(__file__).parents[1] / 'data' / 'augreg_tiny_i21k.npz'
VARIANT = """
dataset_kwargs: {crop_size: 64, dataset: ade20k}
net_kwargs: {image_size: [64, 64], n_heads: 3, normalization: vit}
"""
# Mounts of its own, that go with the process; without root where the system lets users do that.
NAMESPACE = ['unshare', '--map-root-user', '--mount', 'sh', '-c']


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """By name of the tool, what it reads."""
    run, ours = tmp_path_factory.mktemp('run'), tmp_path_factory.mktemp('ours')
    theirs = official.weights(official.load('linear'))
    torch.save(dict(model=theirs), run / 'checkpoint.pth')
    (run / 'variant.yml').write_text(VARIANT)
    convert_official_run(str(run), str(ours))
    timm = {k.removeprefix('encoder.'): v for k, v in theirs.items() if k.startswith('encoder.')}
    torch.save(timm, ours / 'timm.pth')
    return {
        'vitjax2mmseg.py': [NPZ],
        'timm2mmseg.py': [ours / 'timm.pth'],
        'segm2mmseg.py': [run],
        'mmseg2segm.py': [ours / 'config.py', ours / 'model.pth'],
    }


ALL = pytest.mark.parametrize(
    ('tool', 'name'),
    [
        ('vitjax2mmseg.py', 'out.pth'),
        ('timm2mmseg.py', 'out.pth'),
        ('segm2mmseg.py', ''),
        ('mmseg2segm.py', ''),
    ],
)


def one_line(result, *words):
    """It failed, saying so in one line."""
    assert result.returncode == 1 and result.stdout == '', result
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in words), line


# Sources


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize('save', [torch.save, save_legacy, save_pickle])
def test_code_in_a_torch_file_is_not_run(tmp_path, save):
    canary = tmp_path / 'canary'
    save(dict(model={'cls_token': torch.zeros(1, 1, 8)}, optimizer=Evil(canary)), tmp_path / 'evil.pth')
    with pytest.raises(SystemExit) as stop:
        timm2mmseg(tmp_path / 'evil.pth', tmp_path / 'out.pth')
    (line,) = str(stop.value.code).splitlines()
    assert 'evil.pth' in line and os.listdir(tmp_path) == ['evil.pth']
    pickle.loads(pickle.dumps(Evil(canary)))
    assert canary.exists()  # it would have


@pytest.mark.parametrize('tool', ['timm2mmseg.py', 'segm2mmseg.py', 'mmseg2segm.py', 'vitjax2mmseg.py'])
def test_code_in_a_source_is_refused(tmp_path, sources, tool):
    canary, run = tmp_path / 'canary', tmp_path / 'run'
    run.mkdir()
    evil = dict(model=dict(Evil=Evil(canary)), optimizer=Evil(canary))
    torch.save(evil, run / 'checkpoint.pth')
    (run / 'variant.yml').write_text(VARIANT)
    np.savez(run / 'evil.npz', cls=np.array([Evil(canary)], dtype=object))
    source = {
        'timm2mmseg.py': [run / 'checkpoint.pth'],
        'segm2mmseg.py': [run],
        'mmseg2segm.py': [sources['mmseg2segm.py'][0], run / 'checkpoint.pth'],
        'vitjax2mmseg.py': [run / 'evil.npz'],
    }[tool]
    command = [TOOLS / tool, *source, tmp_path / 'out.pth']
    result = run_tool(*command)
    one_line(result, str(source[-1]), 'refused')
    assert os.listdir(tmp_path) == ['run']


# Destinations


@ALL
def test_below_a_file(tmp_path, sources, tool, name):
    """A place where nobody can write, root neither."""
    (tmp_path / 'file').touch()
    command = [TOOLS / tool, *sources[tool], tmp_path / 'file' / name]
    result = run_tool(*command)
    one_line(result, f'cannot write {tmp_path}/file/', 'Not a directory')
    assert os.listdir(tmp_path) == ['file']


def mounted(options, folder, command):
    """Run a command with a tmpfs at ``folder``, then list what it holds."""
    if shutil.which('unshare') is None:
        pytest.skip('no unshare')
    mount = f'mount -t tmpfs -o {options} none {folder}'
    if subprocess.run([*NAMESPACE, mount], capture_output=True).returncode:
        pytest.skip('not allowed to mount')
    script = f'{mount} && {{ "$@"; code=$?; ls -A {folder} > {folder}.listing; exit $code; }}'
    result = subprocess.run([*NAMESPACE, script, 'sh', *command], capture_output=True, text=True)
    return result, Path(f'{folder}.listing').read_text()


@pytest.mark.parametrize(('tool', 'name'), [('vitjax2mmseg.py', 'out.pth'), ('segm2mmseg.py', '')])
def test_full_disk(tmp_path, sources, tool, name):
    folder = tmp_path / 'disk'
    folder.mkdir()
    result, left = mounted('size=64k', folder, [sys.executable, TOOLS / tool, *sources[tool], folder / name])
    one_line(result, f'cannot write {folder}/', 'No space left on device')
    assert left == ''


def test_read_only_disk(tmp_path, sources):
    folder = tmp_path / 'disk'
    folder.mkdir()
    tool = 'segm2mmseg.py'
    result, left = mounted('ro', folder, [sys.executable, TOOLS / tool, *sources[tool], folder])
    one_line(result, f'cannot write {folder}/model.pth and {folder}/config.py: Read-only file system')
    assert left == ''


def test_second_file_that_cannot_be_written_takes_the_first_along(tmp_path, sources, monkeypatch):
    def fail(path, text):
        Path(path).write_text('half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(official_run, 'write_text', fail)
    with pytest.raises(OSError, match=r'cannot write .*config\.py: No space left on device'):
        convert_official_run(str(sources['segm2mmseg.py'][0]), str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    (tmp_path / 'out.pth').write_text('mine')

    def fail(content, file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match=r'cannot write .*out\.pth: No space left on device'):
        convert_encoder(str(NPZ), str(tmp_path / 'out.pth'), force=True)
    assert os.listdir(tmp_path) == ['out.pth'] and (tmp_path / 'out.pth').read_text() == 'mine'


def test_files_that_fail_their_check_are_not_put_in_place(tmp_path):
    def check(folder):
        assert sorted(os.listdir(folder)) == ['a', 'b'] and os.listdir(tmp_path) == [os.path.basename(folder)]
        raise ValueError('no good')

    writers = {name: lambda path: write_text(path, 'text') for name in 'ab'}
    with pytest.raises(ValueError, match='no good'):
        write_atomically(str(tmp_path), writers, check=check)
    assert os.listdir(tmp_path) == []


def test_many_files_that_cannot_be_written_are_not_all_named():
    with pytest.raises(OSError, match=r'^cannot write /dev/null/0 and 7 more: '):
        write_atomically('/dev/null', {str(i): lambda path: None for i in range(8)})


def test_umask_is_respected(tmp_path):
    old = os.umask(0o027)
    try:
        write_atomically(str(tmp_path), {'a': lambda path: write_text(path, 'text')})
    finally:
        os.umask(old)
    assert (tmp_path / 'a').stat().st_mode & 0o777 == 0o640
