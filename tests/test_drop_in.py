"""Unedited mmseg configs on our classes, in a process of its own: drop_in is global."""

import json
import os
import subprocess
import sys
from pathlib import Path

from zoo import CONFIGS

FOLDERS = ('segmenter', 'setr', 'dpt', 'vit')
NAMES = sorted(p.relative_to(CONFIGS).as_posix() for f in FOLDERS for p in (CONFIGS / f).glob('*.py'))

CODE = """
import json, sys, warnings
warnings.simplefilter('ignore')
import torch
import mmseg_segmenter
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmseg.models.backbones.vit import VisionTransformer
from mmseg.models.decode_heads.segmenter_mask_head import SegmenterMaskTransformerHead as TheirHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from zoo import shrink, shrink_images

init_default_scope('mmseg')
torch.set_num_threads(1)
OurHead = MODELS.get('SegmenterMaskTransformerHead')

def build(name):
    cfg = Config.fromfile(name)
    model = revert_sync_batchnorm(MODELS.build(shrink(shrink_images(cfg)).model))
    model.init_weights()
    model.double()
    for m in model.modules():
        m.training = False
    return model

def run(model):
    torch.manual_seed(7)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    metas = [dict(ori_shape=(64, 96), img_shape=(64, 96), pad_shape=(64, 96))]
    with torch.no_grad():
        return model.inference(image, metas)

MODELS.register_module(name='SegmenterMaskTransformerHead', module=TheirHead, force=True)
theirs = {}
for name in sys.argv[1:]:
    theirs[name] = build(name)
    assert type(theirs[name]) is EncoderDecoder and type(theirs[name].backbone) is VisionTransformer
MODELS.register_module(name='SegmenterMaskTransformerHead', module=OurHead, force=True)
import mmseg_segmenter.drop_in
report = {}
for name in sys.argv[1:]:
    ours = build(name)
    assert isinstance(ours, mmseg_segmenter.Segmenter) and type(ours.backbone) is mmseg_segmenter.SegmenterViT
    torch.nn.init.zeros_(ours.backbone.patch_embed.projection.bias)
    extra = ours.state_dict().keys() ^ theirs[name].state_dict().keys()
    theirs_loaded = theirs[name].load_state_dict(ours.state_dict(), strict=False)
    one, other = run(ours), run(theirs[name])
    for p in theirs[name].parameters():
        torch.nn.init.normal_(p, std=0.1)
    ours.load_state_dict(theirs[name].state_dict(), strict=True)
    report[name] = [sorted(extra), (one - other).abs().max().item(), (run(ours) - run(theirs[name])).abs().max().item()]
print(json.dumps(report))
"""


def test_mmseg_configs_build_exchange_checkpoints_and_agree():
    assert len(NAMES) >= 20
    names = [str(CONFIGS / name) for name in NAMES]
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parent)}
    result = subprocess.run([sys.executable, '-c', CODE, *names], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout.strip().splitlines()[-1])
    assert len(report) == len(NAMES)
    for name, (extra, theirs_with_our_weights, ours_with_their_weights) in report.items():
        assert extra == ['backbone.patch_embed.projection.bias'], name
        assert theirs_with_our_weights < 1e-9 and ours_with_their_weights < 1e-9, (name, report[name])


def test_custom_imports_is_enough(tmp_path):
    """As in a user's config: one line, no edit of the model."""
    base = CONFIGS / 'segmenter' / NAMES[next(i for i, n in enumerate(NAMES) if 'vit-t_mask' in n)].split('/')[-1]
    config = tmp_path / 'mine.py'
    config.write_text(
        f"_base_ = '{base}'\ncustom_imports = dict(imports=['mmseg_segmenter.drop_in'], allow_failed_imports=False)\n"
        'model = dict(pretrained=None)\n'
    )
    code = f"""
from mmengine.config import Config
cfg = Config.fromfile({str(config)!r})
from mmengine.registry import init_default_scope
init_default_scope('mmseg')
from mmseg.registry import MODELS
print(type(MODELS.build(cfg.model)).__name__)
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip().splitlines()[-1] == 'Segmenter', result.stderr[-2000:]
