"""Checkpoints of mmseg's own Segmenter and SETR, by ``load_from`` and ``init_model``: all used, and the log says so."""

import logging
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from mmseg.apis import init_model
from mmseg.models.decode_heads.segmenter_mask_head import SegmenterMaskTransformerHead
from mmseg.registry import MODELS
from zoo import CONFIGS, read_config, shrink, shrink_images

from mmseg_segmenter import Segmenter, SegmenterViT

OURS = Path(__file__).parents[2] / 'configs' / 'segmenter'
# mmseg's config, ours for the same weights ('': mmseg's own, on our classes)
MASK = (
    'segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
    OURS / 'segmenter_vit-t_mask_8xb1-160k_ade20k.py',
)
LINEAR = (
    'segmenter/segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512.py',
    OURS / 'segmenter_vit-s_linear_8xb1-160k_ade20k.py',
)
DROP_IN = [
    ('segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py', ''),
    ('segmenter/segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512.py', ''),
    ('setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512.py', ''),
    ('setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py', ''),
    ('setr/setr_vit-l_mla_8xb2-160k_ade20k-512x512.py', ''),
]


def small(config):
    return shrink(shrink_images(read_config(config)))


@pytest.fixture
def zoo_file(tmp_path, monkeypatch):
    """Makes the checkpoint of a config from mmseg's own classes, as its runner saves it."""

    def make(name, **backbone):
        cfg = small(CONFIGS / name)
        cfg.model.backbone.update(backbone)
        with monkeypatch.context() as patch:
            patch.setitem(MODELS.module_dict, 'SegmenterMaskTransformerHead', SegmenterMaskTransformerHead)
            model = MODELS.build(cfg.model)
        for param in model.parameters():
            torch.nn.init.normal_(param)
        path = tmp_path / 'zoo.pth'
        meta = dict(dataset_meta=dict(classes=('a', 'b'), palette=[[0, 0, 0], [1, 1, 1]]), epoch=0, iter=160000)
        torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
        return str(path)

    return make


@pytest.fixture
def our_config(monkeypatch):
    """Makes our config for an entry of the table; undoes ``drop_in``, which is global."""

    def make(theirs, ours):
        if ours:
            return small(ours)
        for name in ('VisionTransformer', 'EncoderDecoder'):
            monkeypatch.setitem(MODELS.module_dict, name, MODELS.module_dict[name])
        runpy.run_module('mmseg_segmenter.drop_in')
        return small(CONFIGS / theirs)

    return make


def load_by_init_model(cfg, path, work_dir):
    return init_model(cfg, path, device='cpu')


def load_by_runner(cfg, path, work_dir):
    runner = Runner(
        cfg.model, work_dir=str(work_dir), load_from=path, default_scope='mmseg', experiment_name=work_dir.name
    )
    runner.load_or_resume()
    (log,) = Path(runner.log_dir).glob('*.log')
    assert f'loaded {path}' in log.read_text()  # not only on the screen
    return runner.model


LOADERS = pytest.mark.parametrize('load', [load_by_init_model, load_by_runner])


@pytest.fixture
def messages(monkeypatch):
    """What is logged through mmengine, whichever logger is the current one: (level, text)."""
    records = []
    from mmseg_segmenter.models import load_report
    from mmseg_segmenter.models.backbones import vit

    for module in (load_report, vit):
        original = module.print_log

        def spy(text, logger, level=logging.INFO, original=original):
            records.append((level, text))
            original(text, logger, level)

        monkeypatch.setattr(module, 'print_log', spy)
    return records


def loading(messages, path):
    return [(level, text) for level, text in messages if path in text]


@LOADERS
@pytest.mark.parametrize(
    'entry', [MASK, LINEAR, *DROP_IN], ids=lambda e: ('drop_in-' * (not e[1])) + e[0].split('/')[1]
)
def test_every_tensor_is_used(tmp_path, zoo_file, our_config, messages, entry, load):
    path = zoo_file(entry[0], patch_bias=True)  # as the models of the zoo, which were trained before mmseg 1.0
    theirs = torch.load(path, weights_only=True)['state_dict']
    model = load(our_config(*entry), path, tmp_path)
    assert isinstance(model, Segmenter) and type(model.backbone) is SegmenterViT
    ours = model.state_dict()
    assert ours.keys() == theirs.keys() and 'backbone.patch_embed.projection.bias' in theirs
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    said = (logging.INFO, f'loaded {path}: all {len(theirs)} tensors of the checkpoint used')
    assert loading(messages, path) == [said]
    assert not [text for level, text in messages if level >= logging.WARNING]


@LOADERS
def test_patch_bias_that_mmseg_left_out(tmp_path, zoo_file, our_config, messages, load):
    path = zoo_file(MASK[0])
    model = load(our_config(*MASK), path, tmp_path)
    assert not model.backbone.patch_embed.projection.bias.any()
    assert [level for level, _ in loading(messages, path)] == [logging.INFO]
    (warning,) = (text for level, text in messages if level == logging.WARNING)
    assert 'the checkpoint has no backbone.patch_embed.projection.bias' in warning


@LOADERS
def test_keys_that_do_not_fit_are_named(tmp_path, zoo_file, our_config, messages, load):
    path = zoo_file(MASK[0], patch_bias=True)
    content = torch.load(path, weights_only=True)
    del content['state_dict']['backbone.ln1.weight'], content['state_dict']['decode_head.cls_emb']
    content['state_dict']['neck.conv.weight'] = torch.zeros(1)
    torch.save(content, path)
    total = len(content['state_dict'])
    load(our_config(*MASK), path, tmp_path)
    assert loading(messages, path) == [
        (logging.WARNING, f'loaded {path}: {total - 1} of {total} tensors of the checkpoint used'),
        (logging.WARNING, f'{path}: 1 tensor not used because the model has none of that name: neck.conv.weight'),
        (
            logging.WARNING,
            f'{path}: 2 tensors not in the checkpoint, left as initialised: backbone.ln1.weight, decode_head.cls_emb',
        ),
    ]


@LOADERS
def test_classes_that_differ_are_named_with_both_shapes(tmp_path, zoo_file, our_config, messages, load):
    """An ADE20K checkpoint into a Cityscapes model."""
    path = zoo_file(LINEAR[0], patch_bias=True)
    cfg = our_config(*LINEAR)
    cfg.model.decode_head.num_classes = 19
    model = load(cfg, path, tmp_path)
    assert model.decode_head.conv_seg.weight.shape == (19, 32, 1, 1)
    total = len(torch.load(path, weights_only=True)['state_dict'])
    first, second = (text for level, text in loading(messages, path) if level == logging.WARNING)
    assert f'{total - 2} of {total} tensors of the checkpoint used' in first
    assert second.startswith(f'{path}: 2 tensors of another shape, left as initialised: size mismatch for decode_head.')
    for name, shape in (('weight', '{}, 32, 1, 1'), ('bias', '{}')):
        theirs, ours = (f'torch.Size([{shape.format(classes)}])' for classes in (150, 19))
        assert (
            f'size mismatch for decode_head.conv_seg.{name}: copying a param with shape {theirs} from checkpoint, '
            f'the shape in current model is {ours}.'
        ) in second


def test_plain_torch_says_so_too(zoo_file, our_config, messages):
    path = zoo_file(MASK[0], patch_bias=True)
    model = MODELS.build(our_config(*MASK).model)
    state = torch.load(path, weights_only=True)['state_dict']
    model.load_state_dict(state)
    assert messages == [(logging.INFO, f'loaded a state_dict: all {len(state)} tensors of the checkpoint used')]
    # below another module only what is the model's counts
    outer = torch.nn.ModuleDict(dict(teacher=model, other=torch.nn.Linear(2, 2)))
    del messages[:]
    outer.load_state_dict({f'teacher.{k}': v for k, v in state.items()}, strict=False)
    assert messages == [(logging.INFO, f'loaded a state_dict: all {len(state)} tensors of the checkpoint used')]
