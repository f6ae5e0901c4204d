"""Train with every config in docs/training.md and check that it does what the document says.

Only width, image size and data are cut; depth, recipe and loops are those of the real config.
"""

import itertools
import json
import re
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmseg_segmenter import engine
from mmseg_segmenter.datasets.shapes import make_shapes

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / 'configs' / 'segmenter' / 'segmenter_vit-t_mask_8xb1-160k_ade20k.py'
# Only the initial weights are random, so that runs can be compared.
TINY = """
_base_ = '{config}'
data_root = '{data}'
model = dict(
    data_preprocessor=dict(size=(32, 32)),
    backbone=dict(img_size=(32, 32), embed_dims=16, num_heads=2, drop_path_rate=0.0, init_cfg=None),
    decode_head=dict(in_channels=16, embed_dims=16, num_heads=2, drop_rate=0.0, attn_drop_rate=0.0),
    test_cfg=dict(crop_size=(32, 32), stride=(16, 16)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(32, 32)),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root=data_root, pipeline=train_pipeline, serialize_data=False))
val_dataloader = dict(num_workers=0, persistent_workers=False,
                      dataset=dict(data_root=data_root, pipeline=test_pipeline, serialize_data=False))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=0)
"""


def read_blocks():
    """Return the Python blocks of the document by heading."""
    blocks = {}
    for section in (ROOT / 'docs' / 'training.md').read_text().split('\n## ')[1:]:
        blocks[section.partition('\n')[0]] = re.findall(r'```python\n(.*?)```', section, re.S)
    return {heading: found for heading, found in blocks.items() if found}


BLOCKS = read_blocks()


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp('training')
    make_shapes(str(root / 'data'), num_images=10, size=(32, 40))
    path = root / 'tiny.py'
    path.write_text(TINY.format(config=CONFIG, data=root / 'data'))
    flat = root / 'flat.py'  # saves looking up the bases in each run
    Config.fromfile(path).dump(flat)
    return flat


@pytest.fixture
def train(tiny, tmp_path, monkeypatch):
    """Return a function that trains with blocks of the document in a config that inherits from the tiny one."""
    # Asking compilers for their versions and formatting the config for the log would take seconds in each run.
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    monkeypatch.setattr('mmengine.config.config.FormatCode', lambda text, **_: (text, True))
    count = itertools.count()

    def run(*blocks, work_dir=None, **options):
        path = tmp_path / 'mine.py'
        path.write_text(f"_base_ = '{tiny}'\n" + '\n'.join(blocks))
        # mmengine distinguishes the runs of a process by these names and by the second in which they start.
        name = f'{tmp_path.name}-{next(count)}'
        options |= {'experiment_name': name, 'visualizer.name': name}
        cfg = engine.load_config(str(path), str(tmp_path / (work_dir or name)), options)
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner

    return run


def weights(runner):
    return {name: value.detach().clone() for name, value in runner.model.named_parameters()}


def scalars(runner, key):
    (path,) = (Path(runner.log_dir) / 'vis_data').glob('scalars.json')
    return [row[key] for row in map(json.loads, path.read_text().splitlines()) if key in row]


def groups(runner):
    """Return the parameter group of each parameter by name."""
    by_id = {id(param): group for group in runner.optim_wrapper.param_groups for param in group['params']}
    return {name: by_id[id(param)] for name, param in runner.model.named_parameters() if id(param) in by_id}


TESTED = set()


def block(heading, index=0):
    TESTED.add((heading, index))
    return BLOCKS[heading][index]


BEST = block('Keep the best checkpoint')
EARLY_STOPPING = block('Keep the best checkpoint', 1)
TENSORBOARD = block('TensorBoard and Weights & Biases')
DRAW = block('Pictures of validations')
WANDB = block('TensorBoard and Weights & Biases', 1)
SCALE_LR = block('Batch size')
ACCUMULATE = block('Batch size', 1)
EMA = block('Exponential moving average of the weights (EMA)')
LAYER_DECAY = block('Learning rate by layer')
HEAD_LR = block('Learning rate by layer', 1)
FROZEN = block('Frozen backbone')
PARTLY_FROZEN = block('Frozen backbone', 1)
WEIGHT_DECAY = block('Weight decay')
CLASS_WEIGHT = block('Losses')
OHEM = block('Losses', 1)
DICE = block('Losses', 2)
LOVASZ = block('Losses', 3)
CHECKPOINTING = block('Memory and speed')
CHANNELS_LAST = block('Memory and speed', 1)
RESUME = block('Resume')
FINITE_LOSS = block('Bad files and a loss that is not finite')


def test_no_block_of_the_document_is_left_out():
    assert {(heading, i) for heading, found in BLOCKS.items() for i in range(len(found))} == TESTED


def test_best_checkpoint(train, tmp_path):
    runner = train(BEST, work_dir='run', **{'train_cfg.max_iters': 6})
    found = sorted(path.name for path in (tmp_path / 'run').glob('*.pth'))
    by_iter = dict(zip((2, 4, 6), scalars(runner, 'mIoU'), strict=True))
    best = max(by_iter, key=by_iter.get)
    assert found == [f'best_mIoU_iter_{best}.pth', 'iter_4.pth', 'iter_6.pth']
    # The first score after resuming does not replace a better one from before.
    assert runner.message_hub.get_info('best_score') == by_iter[best]
    stopped = train(BEST, work_dir='run', resume=True, **{'train_cfg.max_iters': 8, 'optim_wrapper.optimizer.lr': 0.0})
    assert stopped.message_hub.get_info('best_score') == max(by_iter[best], *scalars(stopped, 'mIoU'))


def test_checkpoints_to_resume_from(train, tmp_path):
    """What a resume does with them is in test_resume.py."""
    plain = "default_hooks = dict(checkpoint=dict(type='CheckpointHook'))"
    for block, name in ((plain, 'plain'), (f'{plain}\n{RESUME}', 'exact')):
        train(block, work_dir=name, **{'train_cfg.max_iters': 8})
        assert ('exact_resume' in torch.load(tmp_path / name / 'iter_8.pth')) == (name == 'exact')
    assert {path.name for path in (tmp_path / 'exact').glob('iter_*')} == {'iter_4.pth', 'iter_6.pth', 'iter_8.pth'}


def test_batches_that_may_be_left_out(train, monkeypatch):
    from mmseg_segmenter.models import Segmenter

    calls, plain = [], Segmenter.loss

    def loss(self, inputs, data_samples):
        calls.append(len(calls))
        scale = float('nan') if len(calls) in (2, 3) else 1.0
        return {key: value * scale for key, value in plain(self, inputs, data_samples).items()}

    monkeypatch.setattr(Segmenter, 'loss', loss)
    runner = train(FINITE_LOSS, **{'train_cfg.max_iters': 4})
    (hook,) = (hook for hook in runner.hooks if type(hook).__name__ == 'FiniteLossHook')
    assert hook.skipped == 2 and all(value.isfinite().all() for value in weights(runner).values())
    calls.clear()
    with pytest.raises(ValueError, match=r'iteration 2, learning rate .*: the loss is nan, images .*\.jpg'):
        train("custom_hooks = [dict(type='FiniteLossHook')]", **{'train_cfg.max_iters': 4})


def test_early_stopping(train):
    still = 'param_scheduler = []\noptim_wrapper = dict(optimizer=dict(lr=0.0))'
    runner = train(EARLY_STOPPING, still, **{'train_cfg.max_iters': 30, 'train_cfg.val_interval': 1})
    assert runner.iter == 6  # the first score and five that are no better


def test_tensorboard(train, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runner = train(TENSORBOARD, DRAW, **{'default_hooks.visualization.interval': 1})
    events = EventAccumulator(str(Path(runner.log_dir) / 'vis_data')).Reload()
    for name in ('loss', 'lr', 'mIoU', 'decode.acc_seg'):
        recorded = events.Scalars(name)
        assert [one.step for one in recorded] == ([2] if name == 'mIoU' else [1, 2])
        assert [one.value for one in recorded] == pytest.approx(scalars(runner, name), rel=1e-4)
    names = events.Tags()['images']
    assert len(names) == 2 and all(name.startswith('val_scene') for name in names)
    image = events.Images(names[0])[0]
    local = cv2.imread(str(Path(runner.log_dir) / 'vis_data' / 'vis_image' / f'{names[0]}_2.png'))
    assert image.step == 2 and (image.height, image.width) == local.shape[:2]


def test_wandb(train, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    offline = WANDB.replace("mode='online'", "mode='offline'")
    assert offline != WANDB
    runner = train(offline, DRAW, **{'default_hooks.visualization.interval': 1})
    (folder,) = (Path(runner.log_dir) / 'vis_data' / 'wandb').glob('offline-run-*')
    (record,) = folder.glob('run-*.wandb')
    assert all(name in record.read_bytes() for name in (b'mIoU', b'loss', b'lr', b'val_scene'))
    assert len(list(folder.rglob('val_scene*.png'))) == 2


def test_drawing(train):
    runner = train(DRAW, **{'default_hooks.visualization.interval': 1})
    assert len(list((Path(runner.log_dir) / 'vis_data' / 'vis_image').glob('val_scene*.png'))) == 2


def test_drawing_in_every_second_validation(train):
    runner = train(DRAW, **{'train_cfg.max_iters': 3, 'train_cfg.val_interval': 1})
    drawn = {path.stem[-2:] for path in (Path(runner.log_dir) / 'vis_data' / 'vis_image').iterdir()}
    assert drawn == {'_2'}


def test_drawing_by_mmsegs_hook(train):
    theirs = "dict(_delete_=True, type='SegVisualizationHook', draw=True, interval=1)"
    runner = train(f'default_hooks = dict(visualization={theirs})')
    names = [path.name for path in (Path(runner.log_dir) / 'vis_data' / 'vis_image').iterdir()]
    assert len(names) == 2 and all(name.endswith('.jpg_2.png') for name in names)


def test_scaled_learning_rate(train):
    runner = train(SCALE_LR)
    assert scalars(runner, 'lr')[0] == pytest.approx(1e-3 * 2 / 8, rel=1e-9)


def test_accumulated_gradients(train):
    """Two batches of one image equal one batch of two if all images have the same number of valid pixels."""
    options = {'model.decode_head.loss_decode.avg_non_ignore': False}
    whole = train(**options, **{'train_cfg.max_iters': 4, 'train_cfg.val_interval': 4})
    halves = train(ACCUMULATE, **options, **{
        'train_cfg.max_iters': 8, 'train_cfg.val_interval': 8, 'train_dataloader.batch_size': 1,
    })  # fmt: skip
    assert halves.optim_wrapper.get_lr()['lr'] == pytest.approx(whole.optim_wrapper.get_lr()['lr'], rel=1e-9)
    start, wanted = weights(train(**{'train_cfg.max_iters': 1, 'optim_wrapper.optimizer.lr': 0.0})), weights(whole)
    for name, value in weights(halves).items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=0)
    assert max((wanted[name] - start[name]).abs().max() for name in wanted) > 1e-3


def test_ema(train, tmp_path):
    momentum = {'custom_hooks.0.momentum': 0.25, 'default_hooks.checkpoint.interval': 1}
    runner = train(EMA, work_dir='run', **momentum)
    first, second = (torch.load(tmp_path / 'run' / f'iter_{i}.pth') for i in (1, 2))
    trained = weights(runner)
    for name, value in trained.items():
        one, two = (saved['ema_state_dict'][f'module.{name}'] for saved in (first, second))
        torch.testing.assert_close(two, value, atol=0, rtol=0)  # training continues from these
        torch.testing.assert_close(second['state_dict'][name], 0.75 * one + 0.25 * two, atol=1e-6, rtol=0)
    # The saved model is the one that was validated, also without the hook.
    runner.load_checkpoint(str(tmp_path / 'run' / 'iter_2.pth'))
    runner._hooks = [hook for hook in runner.hooks if type(hook).__name__ != 'EMAHook']
    assert runner.test()['mIoU'] == scalars(runner, 'mIoU')[-1]


def test_ema_resumes(train, tmp_path):
    momentum = {'custom_hooks.0.momentum': 0.25}
    train(EMA, work_dir='whole', **momentum, **{'train_cfg.max_iters': 4})
    train(EMA, work_dir='parts', **momentum)
    train(EMA, work_dir='parts', resume=True, **momentum, **{'train_cfg.max_iters': 4})
    whole, parts = (torch.load(tmp_path / name / 'iter_4.pth') for name in ('whole', 'parts'))
    for key in ('state_dict', 'ema_state_dict'):
        for name, value in whole[key].items():
            torch.testing.assert_close(parts[key][name], value, atol=1e-7, rtol=0)


def test_layer_wise_decay(train):
    runner = train(LAYER_DECAY)
    initial = {name: group['initial_lr'] for name, group in groups(runner).items()}
    assert initial.keys() == weights(runner).keys()
    for name, lr in initial.items():
        if re.match(r'backbone\.(cls_token|pos_embed|patch_embed)', name):
            exponent = 13
        elif name.startswith('backbone.layers.'):
            exponent = 12 - int(name.split('.')[2])
        else:
            exponent = 0
        assert lr == pytest.approx(1e-4 * 0.75**exponent, rel=1e-12), name
    assert all(group['lr'] < group['initial_lr'] for group in groups(runner).values())
    assert scalars(runner, 'base_lr')[0] == pytest.approx(1e-4)


def test_learning_rate_of_the_head(train):
    for name, group in groups(train(HEAD_LR)).items():
        assert group['initial_lr'] == pytest.approx(1e-2 if name.startswith('decode_head') else 1e-3)


@pytest.mark.parametrize(
    ('text', 'trained'),
    [(FROZEN, r'decode_head'), (PARTLY_FROZEN, r'decode_head|backbone\.layers\.1[01]\.')],
    ids=['all', 'partly'],
)
def test_frozen_backbone(train, text, trained):
    start = weights(train(text, work_dir='still', **{'optim_wrapper.optimizer.lr': 0.0, 'param_scheduler': []}))
    runner = train(text)
    for name, param in runner.model.named_parameters():
        learns = re.match(trained, name) is not None
        assert param.requires_grad == learns == (param in runner.optim_wrapper.optimizer.state), name
        assert torch.equal(param.detach(), start[name]) != learns, name
    # dropout and stochastic depth are off where nothing learns
    layers = runner.model.backbone.train().layers
    assert [block.training for block in layers] == [text == PARTLY_FROZEN and i >= 10 for i in range(len(layers))]
    features = runner.model.backbone(torch.randn(1, 3, 32, 32))[0]
    assert features.requires_grad == (text == PARTLY_FROZEN)


def test_weight_decay(train):
    for name, group in groups(train(WEIGHT_DECAY)).items():
        free = name.endswith(('bias', 'cls_token', 'pos_embed', 'cls_emb')) or re.search(r'(ln\d|norm)\.weight$', name)
        assert group['weight_decay'] == (0.0 if free else 0.05), name


def test_class_weights(train):
    runner = train(CLASS_WEIGHT)
    assert runner.model.decode_head.loss_decode.class_weight == [0.5, 1.0, 1.0, 1.0, 2.0]
    assert scalars(runner, 'decode.loss_ce') != scalars(train(CLASS_WEIGHT.replace('0.5', '4.0')), 'decode.loss_ce')


def test_hard_pixels(train):
    """The loss is the plain one if all pixels are hard enough, and differs if few are."""
    plain = scalars(train(), 'decode.loss_ce')[0]
    few = {'model.decode_head.sampler.thresh': 1e-6, 'model.decode_head.sampler.min_kept': 100}
    losses = [scalars(train(OHEM, **options), 'decode.loss_ce')[0] for options in ({}, few)]
    assert losses[0] == pytest.approx(plain, rel=1e-2) and losses[1] < 0.5 * plain


@pytest.mark.parametrize(('text', 'name'), [(DICE, 'loss_dice'), (LOVASZ, 'loss_lovasz')], ids=['dice', 'lovasz'])
def test_several_losses(train, text, name):
    runner = train(text)
    for total, *parts in zip(*(scalars(runner, k) for k in ('loss', 'decode.loss_ce', f'decode.{name}')), strict=True):
        assert total == pytest.approx(sum(parts), rel=1e-4) and 0 < parts[1] <= 1


def test_activation_checkpointing(train):
    runner, plain = train(CHECKPOINTING), train()
    wanted = weights(plain)
    for name, value in weights(runner).items():
        torch.testing.assert_close(value, wanted[name], atol=1e-7, rtol=0)


def test_channels_last(train, tmp_path):
    head = dict(type='FCNHead', in_channels=16, in_index=0, channels=8, num_convs=1, num_classes=150, dropout_ratio=0.0)
    options = {'model.auxiliary_head': head}
    plain = train(work_dir='plain', **options)
    start = str(tmp_path / 'plain' / 'iter_2.pth')  # initial weights depend on the memory format
    plain, runner = (train(code, load_from=start, **options) for code in ('', CHANNELS_LAST))
    wanted = weights(plain)
    for name, value in weights(runner).items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=0)
    kernel, usual = (model.auxiliary_head.convs[0].conv.weight for model in (runner.model, plain.model))
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not usual.is_contiguous(memory_format=torch.channels_last)


def test_resuming_from_a_certain_checkpoint(train, tmp_path):
    options = {'default_hooks.checkpoint.interval': 1}
    whole = train(work_dir='whole', **options)
    saved = str(tmp_path / 'whole' / 'iter_1.pth')
    resumed = train(work_dir='resumed', resume=True, load_from=saved)
    for name, value in weights(resumed).items():
        torch.testing.assert_close(value, weights(whole)[name], atol=1e-7, rtol=0)
    assert resumed.iter == 2 and len(scalars(resumed, 'loss')) == 1
    restarted = train(work_dir='restarted', load_from=saved)
    assert len(scalars(restarted, 'loss')) == 2
