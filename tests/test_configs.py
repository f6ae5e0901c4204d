"""Every config loads, builds, trains and follows the published recipe."""

import inspect
import re
from pathlib import Path

import cv2
import mmengine.config.config
import numpy as np
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from zoo import CONFIGS as MMSEG
from zoo import heads, read_config, shrink, shrink_images, without_scopes

from mmseg_segmenter.engine import load_config

ROOT = Path(__file__).parent.parent / 'configs'
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob('*.py') if '_base_' not in p.parts)
PUBLISHED = [c for c in CONFIGS if '160k' in c or '80k' in c]
# Recipes with the pretraining of DINOv2, DINOv3, DeiT-III and MAE.
FOUNDATION = [c for c in CONFIGS if re.search('^segmenter.*_(dinov2|dinov3|deit3|mae)-.*_ade20k', c)]
SEGMENTER = [c for c in PUBLISHED if c.startswith('segmenter/') and c not in FOUNDATION]
SETR = [c for c in PUBLISHED if c.startswith('setr/')]
EOMT = [c for c in CONFIGS if c.startswith('eomt/')]
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# Classes, iterations, batch size, lr0, image size and crop, from the official segm/config.yml and segm/data/config.
RECIPES = {
    'ade20k': (150, 160000, 8, 1e-3, (2048, 512), 512),
    'ade20k-640x640': (150, 160000, 8, 1e-3, (2560, 640), 640),
    'pascal-context': (60, 80000, 16, 1e-3, (4160, 520), 480),
    'pascal-context-59': (59, 80000, 16, 1e-3, (4160, 520), 480),
    'cityscapes': (19, 80000, 8, 1e-2, (2048, 1024), 768),
}


# Cut to a small width, they are equal to configs of ViT-B: test_repetitions.
REPEATED = [
    c
    for c in SEGMENTER
    if re.search('_vit-[ts]_.*_ade20k|_vit-(t8|s32)_|_vit-._.*_8xb2-160k_ade20k', c)
    or re.search('_vit-l_(mask_.*(cityscapes|context)|linear_.*cityscapes)', c)
]


def without_repetition(foundation, setr='.'):
    """Return the configs; those that repeat others are slow, and so are those of two groups that match no pattern."""
    slow = [
        c
        for c in CONFIGS
        if c in REPEATED
        or (c in [*FOUNDATION, *EOMT] and not re.search(foundation, c))
        or (c in SETR and not re.search(setr, c))
    ]
    return [pytest.param(c, marks=[pytest.mark.slow] if c in slow else []) for c in CONFIGS]


LETTERS = {'t': 'Ti', 's': 'S', 'b': 'B', 'l': 'L'}


def dataset_of(name):
    return Path(name).stem.rsplit('_', 1)[-1]


def patch_of(name):
    return next((patch for patch in (8, 32) if f'{patch}_' in name.split('-')[1]), 16)


def test_the_matrix_is_complete():
    assert len(CONFIGS) == len(SEGMENTER) + len(SETR) + len(FOUNDATION) + len(EOMT) + 10
    assert [sum(dataset_of(c) == d for c in SEGMENTER) for d in RECIPES] == [19, 5, 4, 2, 5]
    assert [sum(dataset_of(c) == d for c in SETR) for d in RECIPES] == [3, 0, 3, 0, 3]
    assert len(EOMT) == 2 * 2 * 3 + 2
    assert [sum(f'_{f}-' in c for c in FOUNDATION) for f in ('dinov2', 'dinov3', 'deit3', 'mae')] == [14, 12, 2, 2]


@pytest.mark.slow
def test_repetitions():
    """What the tests below leave out is in them under another name."""
    models = {c: repr(shrink(read_config(ROOT / c)).model) for c in SEGMENTER}
    tested = {models[c] for c in SEGMENTER if c not in REPEATED}
    assert [c for c in REPEATED if models[c] not in tested] == []


@pytest.mark.parametrize('name', CONFIGS)
def test_pictures_are_drawn_by_our_hook(name):
    """mmseg's warns that it draws nothing."""
    assert read_config(ROOT / name).default_hooks.visualization.type == 'SegmenterVisualizationHook'


@pytest.mark.parametrize('name', CONFIGS)
def test_nothing_is_left_of_shared_settings(name):
    """Settings that a config takes from a base with `_base_.pop` must all have been taken."""
    assert not {'multi_scale_test', 'model_settings', 'setr_model'} & read_config(ROOT / name).keys()


@pytest.mark.parametrize(
    'name', without_repetition('segmenter_.*(-b_|dinov3-splus)|eomt_dinov2-l_.*ade|camvid', setr='pascal-context')
)
def test_builds_and_steps(name):
    """Train one step and predict, at the image size of the config; only width and depth are cut."""
    cfg = shrink(read_config(ROOT / name))
    assert cfg.custom_imports.imports == ['mmseg_segmenter'] and cfg.default_scope == 'mmseg'
    if 'layer_scale' in cfg.model.backbone:
        cfg.model.backbone.layer_scale = 1.0  # from its small initial value, one step is lost in rounding
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    size = cfg.model.data_preprocessor.size
    labels = torch.randint(0, model.num_classes, (1, *size))
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    sample.set_metainfo(dict(ori_shape=size, img_shape=size, pad_shape=size))
    data = dict(inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8)], data_samples=[sample])
    weight = model.backbone.patch_embed.projection.weight
    before = weight.detach().clone()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    losses = model.train_step(data, wrapper)
    assert torch.isfinite(losses['loss'])
    if cfg.model.type == 'EoMT':  # one in front of each block with queries, and one at the end
        assert len([key for key in losses if 'loss_class' in key]) == cfg.model.decode_head.num_blocks + 1
    else:
        assert len([key for key in losses if 'loss_ce' in key]) == len(heads(cfg.model))
    frozen = cfg.model.backbone.get('frozen_exclude') == []
    assert torch.equal(before, weight) == frozen
    model.eval()
    assert model.test_step(data)[0].pred_sem_seg.data.shape == (1, *size)


def fabricate(dataset, root, num_classes):
    """Write two images and annotations where a dataset config expects them, and point the config there."""
    parameters = inspect.signature(DATASETS.get(dataset.type).__init__).parameters
    rng = np.random.default_rng(0)
    # LoadLabelMap may map other numbers to the classes.
    stored = next((t['values'] for t in dataset.pipeline if t.get('values')), range(num_classes))
    contents = dict(
        img=lambda: rng.integers(0, 256, (40, 60, 3), dtype=np.uint8),
        seg_map=lambda: rng.choice(np.array(stored, dtype=np.uint8), (40, 60)),
    )
    for name in ('first', 'second'):
        for kind, make in contents.items():
            suffix = dataset.get(f'{kind}_suffix', parameters[f'{kind}_suffix'].default)
            path = root / dataset.data_prefix[f'{kind}_path'] / f'{name}{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), make())
    if 'ann_file' in dataset:
        (root / dataset.ann_file).parent.mkdir(parents=True, exist_ok=True)
        (root / dataset.ann_file).write_text('first\nsecond\n')
    dataset.data_root = str(root)


@pytest.mark.parametrize('name', without_repetition('-b_(linear-ms|mask-frozen)|eomt_dinov3-s_|own'))
def test_trains_under_mmengines_runner(name, tmp_path, monkeypatch):
    """Train one iteration and validate with mmengine's Runner alone, as mmseg's tools/train.py does.

    Width, depth and everything in pixels are cut. The images are noise in the layout of the dataset.
    """
    # mmengine formats the config five times in a run, which takes seconds.
    monkeypatch.setattr(mmengine.config.config, 'FormatCode', lambda text, **_: (text, True))
    cfg = shrink(read_config(ROOT / name))
    crop, patch = cfg.model.backbone.img_size[0], cfg.model.backbone.patch_size
    sides = range(4 * patch, crop, patch)
    shrink_images(cfg, next((side for side in sides if crop % side == 0), 4 * patch))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        fabricate(loader.dataset, tmp_path / 'data', cfg.model.decode_head.num_classes)
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.work_dir, cfg.experiment_name = str(tmp_path), f'{tmp_path.name}-{Path(name).stem}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 1 and (tmp_path / 'iter_1.pth').is_file()
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].current()) and 0 <= scalars['val/mIoU'].current() <= 100


@pytest.mark.parametrize('name', SEGMENTER)
def test_the_papers_recipe(name):
    cfg = without_scopes(read_config(ROOT / name))
    classes, iterations, batch, lr, (long, short), crop = RECIPES[dataset_of(name)]
    optimizer = dict(type='SGD', lr=lr, momentum=0.9, nesterov=True, weight_decay=0.0)
    assert cfg.optim_wrapper.optimizer == optimizer and cfg.optim_wrapper.clip_grad is None
    assert cfg.param_scheduler == [
        dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=0, end=iterations + 1, by_epoch=False)
    ]
    assert cfg.train_cfg.max_iters == iterations
    # Only ADE20K has a variant with two images per GPU.
    per_gpu = 2 if '8xb2' in name else 1
    assert cfg.train_dataloader.batch_size == per_gpu and (8 * per_gpu == batch or 'ade20k' in name)
    model, patch = cfg.model, patch_of(name)
    assert model.backbone.patch_size == patch == model.test_cfg.size_divisor
    assert model.backbone.img_size == (crop, crop) == model.data_preprocessor.size == model.test_cfg.crop_size
    assert model.test_cfg.stride == (crop - 32, crop - 32) and model.test_cfg.upscale_small
    assert model.backbone.norm_cfg.eps == 1e-5 and model.backbone.drop_path_rate == 0.1
    assert model.backbone.interpolate_mode == 'bilinear' and model.backbone.final_norm
    head = model.decode_head
    assert (
        head.loss_decode.avg_non_ignore
        and head.num_classes == classes
        and head.in_channels == model.backbone.embed_dims
    )
    if 'mask' in name:
        assert (head.drop_rate, head.attn_drop_rate, head.drop_path_rate, head.num_layers) == (0.1, 0.1, 0.0, 2)
        assert head.embed_dims == 64 * head.num_heads == model.backbone.embed_dims
    preprocessor = model.data_preprocessor
    assert preprocessor.bgr_to_rgb and (preprocessor.pad_val, preprocessor.seg_pad_val) == (0, 255)
    if 'deit' in name:
        assert model.backbone.with_dist_token
        assert preprocessor.mean == [123.675, 116.28, 103.53] and preprocessor.std == [58.395, 57.12, 57.375]
    else:
        assert preprocessor.mean == preprocessor.std == [127.5] * 3
    check_pretrained(name, model.backbone.init_cfg.checkpoint, patch)
    check_pipelines(cfg, (long, short), crop)


def check_pretrained(name, checkpoint, patch):
    letter = LETTERS[name.split('-')[1][0]]
    # AugReg has no file for these.
    if 'deit' in name or f'{letter}_{patch}' in ('Ti_8', 'S_8', 'L_32'):
        assert checkpoint.startswith('pretrain/') and '384' in checkpoint
        return
    assert checkpoint.startswith(f'augreg://{letter}_{patch}-i21k-300ep-lr_0.001-aug_')
    assert checkpoint.endswith('-res_224' if patch == 8 else '-res_384')


def check_pipelines(cfg, size, crop):
    kinds = [t.type for t in cfg.train_pipeline]
    assert kinds == ['LoadImage', 'LoadLabelMap', 'RandomResize', 'RandomCrop', 'RandomFlip',
                     'PhotoMetricDistortion', 'PackSegInputs']  # fmt: skip
    resize, random_crop, flip = cfg.train_pipeline[2:5]
    assert resize.scale == size and resize.ratio_range == (0.5, 2.0) and resize.keep_ratio and flip.prob == 0.5
    assert random_crop.crop_size == (crop, crop) and random_crop.cat_max_ratio == 0.75
    assert [t.type for t in cfg.test_pipeline] == ['LoadImage', 'Resize', 'LoadLabelMap', 'PackSegInputs']
    assert cfg.test_pipeline[1].scale == size and cfg.test_pipeline[1].keep_ratio
    # Annotations keep their original size, at which the official code computes scores.
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline
    assert cfg.val_dataloader.dataset.pipeline == cfg.test_dataloader.dataset.pipeline == cfg.test_pipeline
    scales, flips = cfg.tta_pipeline[1].transforms[:2]
    assert [t.scale for t in scales] == [tuple(int(side * r) for side in size) for r in RATIOS]
    assert cfg.tta_pipeline[0].type == 'LoadImage'
    assert [t.prob for t in flips] == [0.0, 1.0] and all(t.keep_ratio for t in scales)


def test_ade20k_at_640_can_be_scored_at_512():
    """The option in the header of the dataset changes the test, and only that."""
    header = (ROOT / '_base_/datasets/ade20k_640x640.py').read_text()
    key, height, width = re.search(r'--cfg-options (\S+)="\((\d+),(\d+)\)"', header).groups()
    name = str(ROOT / 'segmenter/segmenter_vit-l_mask_8xb1-160k_ade20k-640x640.py')
    cfg = load_config(name, cfg_options={key: (int(height), int(width))})
    scales = [cfg[f'{split}_dataloader'].dataset.pipeline[1].scale for split in ('val', 'test')]
    assert scales == [(2560, 640), (2048, 512)]
    assert cfg.model.test_cfg.crop_size == (640, 640)


# lr0; and image size, window and stride in the test. From the configs of github.com/fudan-zvg/SETR.
SETR_LR = {
    'ade20k': dict(naive=1e-2, pup=1e-3, mla=1e-3),
    'pascal-context': dict(naive=1e-2, pup=1e-3, mla=1e-3),
    'cityscapes': dict(naive=1e-2, pup=1e-2, mla=2e-3),
}
SETR_TEST = {
    'ade20k': ((2048, 512), 512, 341),
    'pascal-context': ((520, 520), 480, 320),
    'cityscapes': ((2049, 1025), 768, 512),
}


@pytest.mark.parametrize('name', SETR)
def test_the_recipe_of_setr(name):
    cfg = without_scopes(read_config(ROOT / name))
    dataset, head = dataset_of(name), name.split('_')[2]
    classes, iterations, batch = RECIPES[dataset][:3]
    # SETR trains on ADE20K with batch 16, twice that of Segmenter
    assert cfg.train_dataloader.batch_size == (2 if dataset == 'ade20k' else batch // 8)
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=SETR_LR[dataset][head], momentum=0.9, weight_decay=0.0)
    assert cfg.optim_wrapper.paramwise_cfg == dict(custom_keys=dict(head=dict(lr_mult=10.0)))
    assert cfg.param_scheduler == [
        dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=iterations, by_epoch=False)
    ]
    assert cfg.train_cfg.max_iters == iterations
    size, crop, stride = SETR_TEST[dataset]
    test_cfg = dict(mode='slide', crop_size=(crop, crop), stride=(stride, stride), upscale_small=True)
    assert cfg.model.test_cfg == test_cfg
    assert cfg.model.data_preprocessor.size == cfg.model.backbone.img_size == (crop, crop)
    assert {head.num_classes for head in heads(cfg.model)} == {classes}
    check_pipelines(cfg, size, crop)


@pytest.mark.parametrize('name', [c for c in SETR if 'pascal' not in c])
def test_setr_equals_mmsegs_config(name):
    """Only the classes of model and backbone and the options they add differ."""
    crop = '512x512' if 'ade20k' in name else '768x768'
    ours = without_scopes(read_config(ROOT / name))
    theirs = read_config(MMSEG / f'{name[:-3]}-{crop}.py')
    theirs.model.update(type='Segmenter')
    theirs.model.backbone.type = 'SegmenterViT'
    theirs.model.test_cfg.upscale_small = True
    for head in heads(theirs.model):
        if head.type == 'FCNHead':  # they have no effect without convolutions
            head.pop('norm_cfg', None), head.pop('act_cfg', None)
        if head.get('act_cfg') == dict(type='ReLU'):  # the default
            del head.act_cfg
        if head.type == 'SETRUPHead':
            head.setdefault('up_scale', 4)
    assert ours.model.to_dict() == theirs.model.to_dict()
    for transforms in (theirs.train_dataloader.dataset.pipeline, theirs.val_dataloader.dataset.pipeline):
        transforms[0].type = 'LoadImage'
        for transform in transforms:  # ours check what they load; reduce_zero_label is the dataset's
            if transform.type == 'LoadAnnotations':
                transform.type = 'LoadLabelMap'
                transform.pop('reduce_zero_label', None)
    for key in ('param_scheduler', 'train_dataloader', 'val_dataloader', 'train_cfg'):
        assert ours[key] == theirs[key], key
    assert ours.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer


# Width, depth, heads and hidden width of the feed-forward networks.
SIZES = {
    's': (384, 12, 6, 1536),
    'splus': (384, 12, 6, 1536),
    'b': (768, 12, 12, 3072),
    'l': (1024, 24, 16, 4096),
    'hplus': (1280, 32, 20, 5120),
    'g': (1536, 40, 24, 4096),
    '7b': (4096, 40, 32, 8192),
}


# Iterations, starts and ends of the annealing; from configs/dinov*/*/semantic of github.com/tue-mps/eomt.
EOMT_RECIPES = {
    ('dinov2', 'ade20k'): (31 * (20210 // 16), [6520, 13040, 19560, 26080], [13040, 19560, 26080, 32600]),
    ('dinov3', 'ade20k'): (16 * (20210 // 16), [0, 6520, 9780, 13040], [3000, 9780, 13040, 16300]),
    ('dinov2', 'cityscapes'): (107 * (2975 // 16), [3317, 6634, 9951, 13268], [6634, 9951, 13268, 16585]),
    ('dinov3', 'cityscapes'): (107 * (2975 // 16), [0, 6634, 9951, 13268], [3000, 9951, 13268, 16585]),  # unpublished
}


@pytest.mark.parametrize('name', [c for c in EOMT if '8xb2' in c])
def test_recipes_of_eomt(name):
    cfg = without_scopes(read_config(ROOT / name))
    family, size, data = re.match(r'eomt/eomt_(\w+?)-(\w)_8xb2-\d+k_(\w+)', name).groups()
    iterations, start, end = EOMT_RECIPES[family, data]
    crop = 512 if data == 'ade20k' else 1024
    vit, head = cfg.model.backbone, cfg.model.decode_head
    assert (vit.embed_dims, vit.num_layers, vit.num_heads) == SIZES[size][:3] and head.in_channels == vit.embed_dims
    checkpoint = f'dinov2://vit{size}14_reg' if family == 'dinov2' else f'dinov3://vit{size}16'
    assert vit.init_cfg.checkpoint == checkpoint
    assert (head.num_queries, head.num_blocks) == (100, 4 if size == 'l' else 3)
    assert cfg.model.data_preprocessor.size == vit.img_size == cfg.model.test_cfg.crop_size == (crop, crop)
    assert cfg.model.test_cfg.even_windows
    lr, decay, warmup = (1e-4, 0.8, (500, 1000)) if family == 'dinov2' else (2e-4, 1.0, (2000, 3000))
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=0.05)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.01)
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_rate=decay, blocks_only=True)
    schedule = dict(type='TwoStageWarmupPolyLR', total_steps=iterations, warmup_iters=warmup, by_epoch=False)
    assert cfg.param_scheduler == [schedule] and cfg.train_cfg.max_iters == iterations
    assert cfg.train_dataloader.batch_size == 2
    (hook,) = cfg.custom_hooks
    if size == 'l':
        assert (hook.start, hook.end) == (start, end)
    else:  # the middle of three blocks is halfway
        assert hook.start == pytest.approx([start[0], (start[1] + start[2]) / 2, start[3]], abs=1)
        assert hook.end == pytest.approx([end[0], (end[1] + end[2]) / 2, end[3]], abs=1)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.pipeline[1] == dict(
            type='Resize', scale=(100000, crop), keep_ratio=True, backend='pillow'
        )


@pytest.mark.parametrize('name', FOUNDATION)
def test_recipes_of_foundation_models(name):
    cfg = without_scopes(read_config(ROOT / name))
    family, size, head = re.match(r'segmenter/segmenter_(\w+?)-(\w+?)_([\w-]+?)_8xb', name).groups()
    vit, decoder = cfg.model.backbone, cfg.model.decode_head
    hidden = vit.get('feedforward_channels') or 4 * vit.embed_dims
    assert (vit.embed_dims, vit.num_layers, vit.num_heads, hidden) == SIZES[size]
    assert (vit.get('ffn') == 'swiglu') == (size in ('splus', 'hplus', 'g', '7b'))
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    frozen = vit.get('frozen_exclude') == []
    assert frozen == (head in ('linear', 'linear-ms', 'mask-frozen'))
    assert (frozen or family == 'deit3') == ('constructor' not in cfg.optim_wrapper)
    optimizer = cfg.optim_wrapper.optimizer
    if family in ('deit3', 'mae'):
        assert vit.norm_cfg.eps == 1e-6 and (vit.get('cls_pos_embed', True), 'layer_scale' in vit) == (
            (False, True) if family == 'deit3' else (True, False)
        )
        assert optimizer.type == ('SGD' if family == 'deit3' else 'AdamW')
        return
    letters = {'splus': 's16plus', 'hplus': 'h16plus', '7b': '7b16'}.get(
        size, size + dict(dinov2='14', dinov3='16')[family]
    )
    assert vit.init_cfg.checkpoint == f'{family}://vit{letters}'
    assert cfg.train_cfg.max_iters == 40000 and cfg.train_dataloader.batch_size == 2
    assert optimizer.type == 'AdamW' and cfg.optim_wrapper.clip_grad is None
    assert 'momentum' not in optimizer and vit.final_norm
    if head == 'linear-ms':
        depth = vit.num_layers
        assert tuple(vit.out_indices) == tuple(range(depth - 4, depth)) and vit.norm_outputs
        assert decoder.in_channels == [vit.embed_dims] * 4 and list(decoder.in_index) == [0, 1, 2, 3]
        crop, stride, side, ratios = 640, 320, 640, (1.0, 3.0)
    else:
        assert decoder.in_channels == vit.embed_dims
        crop, stride, side, ratios = 512, 341, 512, (0.5, 2.0)
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(crop, crop), stride=(stride, stride))
    assert cfg.model.data_preprocessor.size == cfg.train_pipeline[3].crop_size == (crop, crop)
    long = 2048 if family == 'dinov2' and head != 'linear-ms' else 99999999
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.train_pipeline):
        assert pipeline[2].scale == (long, side) and pipeline[2].ratio_range == ratios
    assert cfg.test_dataloader.dataset.pipeline[1].scale == cfg.val_dataloader.dataset.pipeline[1].scale == (long, side)
    if head.startswith('linear'):
        assert decoder.norm_cfg == dict(type='SyncBN') and not decoder.loss_decode.avg_non_ignore
        assert decoder.get('dropout_ratio', 0) == (0.1 if family == 'dinov3' else 0)
        assert optimizer == dict(
            type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4 if family == 'dinov2' else 1e-3
        )
        model = MODELS.build(shrink(cfg).model)
        model.init_weights()
        assert model.decode_head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.05)
    if head == 'linear-ms':
        scales, flips = cfg.tta_pipeline[1].transforms[:2]
        assert [t.scale[1] for t in scales] == [640, 844, 1107, 1459, 1920] and len(flips) == 2


@pytest.mark.parametrize(
    ('size', 'millions'),
    [
        ('dinov2-s', 22.06), ('dinov2-b', 86.58), ('dinov2-l', 304.37), ('dinov2-g', 1136.48),
        ('dinov3-s', 21.59), ('dinov3-splus', 28.68), ('dinov3-b', 85.64), ('dinov3-l', 303.08),
        ('dinov3-hplus', 840.51), ('dinov3-7b', 6716.03),
    ],
)  # fmt: skip
def test_parameter_count_of_foundation_models(size, millions):
    """Compare with timm's models of the released weights; those of DINOv3 have no qkv bias."""
    backbone = read_config(ROOT / f'segmenter/segmenter_{size}_linear_8xb2-40k_ade20k.py').model.backbone
    backbone.init_cfg = None
    with torch.device('meta'):
        parameters = MODELS.build(backbone).named_parameters()
    left_out = 'in_proj_bias' if 'dinov3' in size else 'none'
    assert round(sum(p.numel() for name, p in parameters if left_out not in name) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ('name', 'options', 'millions'),
    [
        ('vit-t_mask_8xb1-160k_ade20k', {}, 6.9),
        ('vit-s_mask_8xb1-160k_ade20k', {}, 26.4),
        ('vit-b_mask_8xb1-160k_ade20k', {}, 103.3),
        ('vit-l_mask_8xb1-160k_ade20k-640x640', {}, 334.3),
        ('vit-b8_linear_8xb1-160k_ade20k', {}, 89.2),
        # The official README gives whole millions; the released model appears to have one decoder layer.
        ('vit-l_mask_8xb1-80k_cityscapes', {'model.decode_head.num_layers': 1}, 322),
    ],
)
def test_parameter_count(name, options, millions):
    """Compare with the official code, which also counts an unused ImageNet classifier, Linear(D, 1000)."""
    cfg = load_config(str(ROOT / 'segmenter' / f'segmenter_{name}.py'), cfg_options=options)
    backbone = cfg.model.backbone
    backbone.init_cfg = None
    with torch.device('meta'):
        count = sum(p.numel() for p in MODELS.build(cfg.model).parameters())
    total = (count + 1000 * (backbone.embed_dims + 1)) / 1e6
    assert round(total, 1 if isinstance(millions, float) else None) == millions


@pytest.mark.parametrize('depth', [1, 3])
def test_decoder_depth_is_one_option(depth):
    name = ROOT / 'segmenter' / 'segmenter_vit-t_mask_8xb1-160k_ade20k.py'
    cfg = shrink(load_config(str(name), cfg_options={'model.decode_head.num_layers': depth}))
    assert len(MODELS.build(cfg.model).decode_head.layers) == depth
