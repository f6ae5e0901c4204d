import io
import os
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from evil import Evil
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from mmseg_segmenter import compat


def compiled_mmcv():
    return not isinstance(sys.modules['mmcv._ext'], compat._MissingOps)


def run_python(code, **env):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, **env})


@pytest.mark.skipif(compiled_mmcv(), reason='compiled mmcv')
def test_missing_operator_names_mmcv_when_called():
    from mmcv.ops import point_sample  # noqa: F401  imports
    from mmcv.ops.nms import ext_module

    with pytest.raises(ImportError, match=r"operator 'nms' needs the compiled mmcv.*pip install 'mmcv>="):
        ext_module.nms(1, 2)


@pytest.mark.skipif(compiled_mmcv(), reason='compiled mmcv')
def test_placeholder_does_not_pass_for_the_real_one():
    from mmcv.utils.ext_loader import check_ops_exist

    assert not hasattr(sys.modules['mmcv._ext'], '__file__')
    assert not check_ops_exist()


def test_a_compiled_mmcv_is_left_alone(tmp_path):
    """A stand-in for a compiled mmcv: a `_ext` that can be found."""
    code = f"""
import sys, types, mmcv
mmcv.__path__.append({str(tmp_path)!r})
from importlib import util
assert util.find_spec('mmcv._ext') is not None
import importlib.machinery
sys.path.insert(0, '.')
from unittest import mock
with mock.patch.dict(sys.modules):
    package = types.ModuleType('mmseg_segmenter')
    package.__path__ = [{os.path.dirname(compat.__file__)!r}]
    sys.modules['mmseg_segmenter'] = package
    source = open({compat.__file__!r}).read().split('\\ncheck_installation()\\n')[0]
    namespace = dict(__name__='mmseg_segmenter.compat', __package__='mmseg_segmenter')
    exec(source, namespace)
    namespace['provide_ops_placeholder']()
    assert 'mmcv._ext' not in sys.modules
"""
    (tmp_path / '_ext.py').write_text('')
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ('version', 'message'),
    [('2.2.0', r'MMCV==2.2.0 is used but incompatible'), pytest.param('1.7.0', 'MMCV==1.7.0', marks=pytest.mark.slow)],
)
def test_mmcv_out_of_range_is_one_sentence_with_the_command(version, message):
    result = run_python(f'import mmcv; mmcv.__version__ = {version!r}\nimport mmseg_segmenter')
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert (
        last.startswith('mmseg_segmenter.errors.MissingPackageError: ')
        and message in last
        and "pip install 'mmcv-lite>=2.0.0,<2.2'" in last
    )


@pytest.mark.parametrize(
    ('module', 'message'),
    [('mmcv', "pip install 'mmcv-lite>=2.0.0,<2.2'"), ('pkg_resources', "pip install 'setuptools<82'")],
)
def test_missing_module_is_one_sentence_with_the_command(module, message):
    code = f"""
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *a: None if name == {module!r} else find(name, *a)
import mmseg_segmenter
"""
    result = run_python(code)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('mmseg_segmenter.errors.MissingPackageError: ') and message in last


def stub(folder, name, content):
    (folder / name).mkdir(parents=True)
    (folder / name / '__init__.py').write_text(content)


NMS = "raise RuntimeError('operator torchvision::nms does not exist')\n"


def test_torchvision_of_another_torch_does_not_take_mmseg_along(tmp_path):
    stub(tmp_path, 'timm', 'import torchvision\n')
    stub(tmp_path, 'torchvision', NMS)
    code = """
import sys
import mmseg_segmenter
from mmseg.models.backbones import timm_backbone
assert timm_backbone.timm is None and 'timm' not in sys.modules and 'torchvision' not in sys.modules
for package in ('timm', 'torchvision'):  # not hidden from others
    try:
        __import__(package)
    except RuntimeError as error:
        assert 'torchvision::nms' in str(error)
    else:
        raise AssertionError(package)
from mmengine.utils.dl_utils import collect_env
with mmseg_segmenter.compat.hidden_if_broken('torchvision'):
    assert 'TorchVision' not in collect_env()
assert 'torchvision' not in sys.modules
"""
    result = run_python(code, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert result.returncode == 0, result.stderr
    output = result.stdout + result.stderr
    for package in ('timm', 'torchvision'):
        reason = r'\(RuntimeError: operator torchvision::nms does not exist\)'
        said = f'WARNING - {package} cannot be imported and is treated as not installed {reason}'
        assert len(re.findall(said, output)) == 1, output


def test_packages_that_work_are_not_hidden(tmp_path, monkeypatch, capsys):
    stub(tmp_path, 'a_working_package', 'value = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    with compat.hidden_if_broken('a_working_package'), compat.hidden_if_broken('no_such_package'):
        import a_working_package

        assert a_working_package.value == 1
    assert sys.modules.pop('a_working_package') is a_working_package and capsys.readouterr() == ('', '')


@pytest.mark.skipif(compiled_mmcv(), reason='compiled mmcv')
@pytest.mark.parametrize(
    'module', ['mmseg.apis', *(pytest.param(name, marks=pytest.mark.slow) for name in ('mmseg.models', 'mmcv.ops'))]
)
def test_modules_that_need_the_placeholder(module):
    """They fail without it, and work after the package is imported, also when they failed before."""
    code = f"""
import importlib
try:
    importlib.import_module({module!r})
except ModuleNotFoundError as error:
    assert error.name == 'mmcv._ext', error
else:
    raise AssertionError('the placeholder is no longer needed')
import mmseg_segmenter
importlib.import_module({module!r})
from mmseg.apis import init_model
from mmseg.registry import MODELS
assert all(MODELS.get(name) for name in ('Segmenter', 'EncoderDecoder', 'UPerHead', 'PointHead'))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_package_before_mmseg():
    result = run_python('import mmseg_segmenter\nfrom mmseg.apis import init_model, inference_model')
    assert result.returncode == 0, result.stderr


# Checkpoints


def runner_checkpoint():
    """What mmengine's Runner saves besides tensors."""
    history = HistoryBuffer()
    history.update(0.5)
    history.update(np.float64(0.25).item())
    return dict(
        meta=dict(iter=3, cfg='a = 1', dataset_meta=dict(classes=('a', 'b'), palette=[[0, 0, 0]])),
        state_dict=dict(weight=torch.ones(2)),
        optimizer=dict(state={0: dict(momentum_buffer=torch.ones(2))}, param_groups=[dict(lr=0.1, params=[0])]),
        message_hub=dict(
            log_scalars={'train/loss': history},
            runtime_info=dict(
                iter=3,
                score=np.float64(0.5),
                count=np.int64(2),
                flag=np.bool_(True),
                palette=np.zeros((2, 3), np.uint8),
            ),
            resumed_keys={},
        ),
    )


def test_runner_checkpoint_loads(tmp_path):
    path = str(tmp_path / 'iter_3.pth')
    torch.save(runner_checkpoint(), path)
    loaded = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    assert loaded['message_hub']['log_scalars']['train/loss'].mean() == 0.375
    assert loaded['message_hub']['runtime_info']['score'] == 0.5
    assert loaded['message_hub']['log_scalars']['train/loss'].statistics('max') == 0.5
    assert torch.equal(
        load_checkpoint(torch.nn.Linear(2, 1), path, strict=False)['state_dict']['weight'], torch.ones(2)
    )


def test_history_written_under_numpy_1(tmp_path):
    path = tmp_path / 'iter_3.pth'
    torch.save(runner_checkpoint(), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b'numpy._core.multiarray' in data
    path.write_bytes(data.replace(b'numpy._core.multiarray', b'numpy.core.multiarray'))
    loaded = CheckpointLoader.load_checkpoint(str(path))
    assert loaded['message_hub']['log_scalars']['train/loss'].mean() == 0.375


@pytest.mark.parametrize('new_format', [True, False])
def test_pickle_that_asks_for_more_is_refused(tmp_path, new_format):
    canary, path = str(tmp_path / 'canary'), str(tmp_path / 'evil.pth')
    torch.save(dict(state_dict={}, extra=Evil(canary)), path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r'evil\.pth: refused, it holds more than tensors.*mkdir'):
        CheckpointLoader.load_checkpoint(path)
    assert not os.path.exists(canary)


def test_allowing_statistics_does_not_allow_getattr(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    torch.save(dict(a=Reach()), tmp_path / 'reach.pth')
    with pytest.raises(ValueError, match=r'reach\.pth: refused.*getattr'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'reach.pth'))


def truncated(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    'damage',
    [truncated, lambda d: b'', lambda d: b'<html>404 Not Found</html>', lambda d: d[:40], lambda d: b'\x80\x02garbage'],
    ids=['half', 'empty', 'html', 'head', 'garbage'],
)
def test_corrupt_file_is_named(tmp_path, damage):
    buffer = io.BytesIO()
    torch.save(dict(state_dict=dict(weight=torch.ones(1000))), buffer)
    path = tmp_path / 'broken.pth'
    path.write_bytes(damage(buffer.getvalue()))
    with pytest.raises(ValueError, match=r'broken\.pth \([\d,]+ bytes\) is not a readable checkpoint'):
        CheckpointLoader.load_checkpoint(str(path))


def test_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as file:
        file.writestr('hello', 'world')
    with pytest.raises(ValueError, match='not a readable checkpoint'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))


def test_plain_pickle_is_not_executed(tmp_path):
    canary, path = str(tmp_path / 'canary'), tmp_path / 'evil.pth'
    path.write_bytes(pickle.dumps(Evil(canary), protocol=2))
    with pytest.raises(ValueError, match=r'evil\.pth'):
        CheckpointLoader.load_checkpoint(str(path))
    assert not os.path.exists(canary)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nothing\.pth not found'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'nothing.pth'))
