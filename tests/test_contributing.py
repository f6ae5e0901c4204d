"""The examples of CONTRIBUTING.md do what is said there."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

from mmseg_segmenter.checkpoints import formats
from mmseg_segmenter.checkpoints.convert import convert_encoder
from mmseg_segmenter.checkpoints.formats import timm
from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models import SegmenterViT

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')


def example(path: str) -> str:
    """Return the block whose first comment names a file."""
    (found,) = [
        block for block in re.findall(r'^```python\n(.*?)^```', TEXT, re.S | re.M) if f'# {path}\n' in block[:80]
    ]
    return found


def load(path: str, folder: Path) -> ModuleType:
    """Import an example as if it was in its place in the package."""
    file = folder / Path(path).name
    file.write_text(example(path))
    spec = importlib.util.spec_from_file_location(path.removesuffix('.py').replace('/', '.'), file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_checkpoint_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load('mmseg_segmenter/checkpoints/formats/my_format.py', tmp_path)
    known = formats.formats()
    monkeypatch.setattr(formats, 'formats', lambda: (*known, module))
    model = SegmenterViT(img_size=32, embed_dims=64, num_layers=2, num_heads=1, final_norm=True)
    model.init_weights()
    state = {f'module.encoder.{key}': value for key, value in timm.from_mmseg(model.state_dict()).items()}
    state['module.projection.weight'] = torch.zeros(2, 2)
    torch.save(state, tmp_path / 'source.pth')
    encoder = convert_encoder(str(tmp_path / 'source.pth'), str(tmp_path / 'out.pth'), verify=True)
    assert encoder.verified is not None and encoder.verified.difference < 1e-9
    assert encoder.conversion.dropped == ['module.projection.weight']
    for key, value in torch.load(tmp_path / 'out.pth')['state_dict'].items():
        assert torch.equal(value, model.state_dict()[key])
    state['module.encoder.extra'] = torch.zeros(1)
    torch.save(state, tmp_path / 'other.pth')
    with pytest.raises(UserError, match='extra'):
        convert_encoder(str(tmp_path / 'other.pth'), str(tmp_path / 'none.pth'))


def test_decode_head(tmp_path: Path) -> None:
    head_type = load('mmseg_segmenter/models/decode_heads/my_head.py', tmp_path).MyHead
    try:
        head = MODELS.build(dict(type='MyHead', in_channels=8, channels=8, num_classes=3))
    finally:
        MODELS.module_dict.pop('MyHead')
    assert isinstance(head, head_type)
    assert head((torch.randn(2, 8, 4, 5),)).shape == (2, 3, 4, 5)


def test_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tool = tmp_path / 'my_tool.py'
    tool.write_text(example('tools/analysis_tools/my_tool.py'))
    monkeypatch.chdir(tmp_path)
    config = ROOT / 'configs/segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), str(config)])
    runpy.run_path(str(tool), run_name='__main__')
    assert 6e6 < int(capsys.readouterr().out) < 8e6
    monkeypatch.setattr(sys, 'argv', [str(tool), 'missing.py'])
    with pytest.raises(SystemExit, match=r'missing\.py'):
        runpy.run_path(str(tool), run_name='__main__')


def test_config(tmp_path: Path) -> None:
    for folder in ('_base_', 'segmenter'):
        (tmp_path / folder).symlink_to(ROOT / 'configs' / folder)
    (tmp_path / 'mine').mkdir()
    path = tmp_path / 'mine' / 'my_config.py'
    path.write_text(example('configs/segmenter/my_config.py').replace("'./", "'../segmenter/"))
    assert Config.fromfile(path).model.decode_head.num_layers == 1
