import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmseg.models.backbones.vit import VisionTransformer
from mmseg.registry import MODELS

import mmseg_segmenter
from mmseg_segmenter.analysis import benchmark
from mmseg_segmenter.analysis.benchmark import measure
from mmseg_segmenter.analysis.benchmark.foreign import _timm_to_transformers, why_missing
from mmseg_segmenter.checkpoints.formats import timm as timm_format
from mmseg_segmenter.datasets.shapes import make_shapes
from mmseg_segmenter.errors import UserError

TEXT = """
model = dict(
    type='Segmenter',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), seg_pad_val=255),
    backbone=dict(type='SegmenterViT', img_size=32, patch_size=8, embed_dims=16, num_layers=2, num_heads=2,
                  interpolate_mode='bilinear', final_norm=True,
                  init_cfg=dict(type='Pretrained', checkpoint='none.pth')),
    decode_head=dict(type='{head}', in_channels=16, num_classes=5, {arguments}
                     loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(20, 20), size_divisor=8))
"""
MASK = dict(head='SegmenterMaskTransformerHead', arguments='embed_dims=16, num_heads=2, num_layers=1,')


@pytest.fixture(scope='module', autouse=True)
def prepared():
    benchmark.prepare()


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(TEXT.format(**MASK))
    return path


@pytest.mark.parametrize('mode', ['forward', 'train', 'slide', 'tta'])
@pytest.mark.parametrize('head', ['mask', 'linear'])
def test_sides_agree(mode, head, tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(TEXT.format(**(MASK if head == 'mask' else dict(head='LinearHead', arguments=''))))
    case = benchmark.Case(mode, (40, 72), batch_size=1 if mode == 'tta' else 2, num_classes=7)
    models = benchmark.contenders(str(path), ['mmseg'], 7)
    benchmark.compare(case, models, repeats=2, with_memory=False, peak=100.0)
    theirs, ours = models
    assert theirs.name == 'tiny (mmseg)' and ours.name == 'tiny'
    assert len(ours.seconds) == len(theirs.seconds) == 2 and theirs.agreement is None
    assert ours.parameters == theirs.parameters
    if mode in ('forward', 'train'):
        assert ours.agreement < 1e-5
    else:
        assert ours.agreement > 0.999
    if mode == 'forward':
        assert ours.gflops == pytest.approx(theirs.gflops) and ours.gflops > 0
        assert ours.peak_share == pytest.approx(ours.gflops / ours.median / 100)
    text = benchmark.table(case, models)
    assert f'{mode}, 40x72' in text and '7 classes' in text and len(text.splitlines()) == 4


EOMT = """
model = dict(
    type='EoMT',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64), seg_pad_val=255),
    backbone=dict(type='SegmenterViT', img_size=32, patch_size=8, embed_dims=16, num_layers=3, num_heads=2,
                  num_registers=2, layer_scale=1.0, cls_pos_embed=False, final_norm=True),
    decode_head=dict(type='EoMTHead', in_channels=16, num_classes=5, num_queries=12, num_blocks=2, patch_size=8,
                     loss_decode=dict(type='MaskClassificationLoss', num_points=64)),
    test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(32, 32), even_windows=True))
"""


@pytest.mark.parametrize('mode', ['forward', 'train', 'slide'])
def test_eomt_beside_that_of_transformers(mode, tmp_path):
    """The same masks, labels and, in front of the first step, losses."""
    pytest.importorskip('transformers.models.eomt')
    path = tmp_path / 'tiny.py'
    path.write_text(EOMT)
    case = benchmark.Case(mode, (32, 72 if mode == 'slide' else 32), batch_size=2)
    models = benchmark.contenders(str(path), ['transformers'])
    benchmark.compare(case, models, repeats=1, with_memory=False)
    ours, theirs = models
    assert theirs.name == 'tiny (transformers)' and theirs.parameters == ours.parameters
    if mode == 'slide':
        assert theirs.agreement == 1
    else:
        assert theirs.agreement < (1e-5 if mode == 'forward' else 1e-4)


def test_what_transformers_has_no_eomt_for(config, tmp_path):
    pytest.importorskip('transformers.models.eomt')
    path = tmp_path / 'eomt.py'
    path.write_text(EOMT.replace('num_registers=2, ', ''))
    with pytest.raises(UserError, match='on a ViT with num_registers, layer_scale'):
        benchmark.compare(benchmark.Case('forward', (32, 32)), benchmark.contenders(str(path), ['transformers']), 1)
    with pytest.raises(UserError, match='--vs transformers --mode forward: only an EoMT'):
        benchmark.compare(benchmark.Case('forward', (32, 32)), benchmark.contenders(str(config), ['transformers']), 1)


def test_frozen_backbone_beside_a_trained_one(config):
    case = benchmark.Case('train', (40, 72), batch_size=2)
    trained, frozen = models = benchmark.contenders(str(config), ['frozen'])
    benchmark.compare(case, models, repeats=1, with_memory=False)
    assert frozen.name == 'tiny (frozen)' and frozen.config.backbone.frozen_exclude == []
    assert 'frozen_exclude' not in trained.config.backbone and frozen.parameters == trained.parameters
    assert frozen.agreement < 1e-6 and trained.gflops > 0 and frozen.gflops is None


@pytest.mark.parametrize(
    ('old', 'new', 'missing'),
    [
        ('patch_size=8,', 'patch_size=8, layer_scale=1e-5, num_registers=4,', 'with layer_scale, num_registers'),
        ("type='LinearHead',", "type='LinearHead', norm_cfg=dict(type='BN'),", 'LinearHead with norm_cfg'),
    ],
)
def test_what_mmseg_cannot_build_is_not_compared(tmp_path, old, new, missing):
    text = TEXT.format(head='LinearHead', arguments='')
    path = tmp_path / 'tiny.py'
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=f'mmseg has no .*{missing} .*to compare with'):
        benchmark.contenders(str(path), ['mmseg'])


def test_memory_is_measured_in_a_process_of_its_own(config, tmp_path):
    block = b'x' * (1 << 30)  # of this process, not of theirs
    case = benchmark.Case('slide', (40, 72))
    models = benchmark.contenders(str(config), ['mmseg'])
    benchmark.compare(case, models, repeats=1)
    for side in models:
        assert 0.1 < side.model_gb <= side.peak_gb < 1.2
    del block
    benchmark.write_json(str(tmp_path / 'out.json'), [benchmark.record(case, models)], 50.0)
    content = json.loads((tmp_path / 'out.json').read_text())
    assert content['machine']['torch'] and content['matmul_gflops'] == 50.0
    (record,) = content['records']
    assert record['case']['mode'] == 'slide' and len(record['contenders']) == 2
    assert record['contenders'][0]['speed'] == 1 and record['contenders'][1]['peak_gb'] == models[1].peak_gb
    benchmark.plot(str(tmp_path / 'plot.png'), content['records'])
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')


def test_memory_is_measured_without_counting_products(config, tmp_path, monkeypatch, capsys):
    """Counting turns fused attention off, which takes more memory than the model."""
    (side,) = benchmark.contenders(str(config))
    request = str(tmp_path / 'request.pt')
    torch.save((asdict(benchmark.Case('forward', (32, 32))), dict(asdict(side), config=side.config.to_dict())), request)
    counted = []
    monkeypatch.setattr(benchmark.Workload, '_count_gflops', counted.append)
    measure._report_peak(request)
    assert len(capsys.readouterr().out.split()) == 2 and not counted


def test_plot_has_a_line_for_each_case(tmp_path, monkeypatch):
    records = [
        dict(
            case=dict(mode='slide', size=(64, width), batch_size=batch_size, num_classes=7),
            contenders=[dict(name=name, median=1.0, peak_gb=None) for name in ('mmseg', 'here')],
        )
        for width in (64, 128)
        for batch_size in (1, 4)
    ]
    lines = []
    monkeypatch.setattr('matplotlib.axes.Axes.plot', lambda self, x, y, *_, label: lines.append((label, x)))
    benchmark.plot(str(tmp_path / 'plot.png'), records)
    xs = (64 * 64 / 1e6, 64 * 128 / 1e6)
    assert lines == [(f'{name}, batch_size {b}', xs) for b in (1, 4) for name in ('mmseg', 'here')]


def test_any_mmseg_config(config):
    """Models of other architectures stand beside each other, without weights to share."""
    options = {'model.decode_head.num_convs': 1, 'model.decode_head.channels': 16}
    (other,) = benchmark.contenders('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', [], 5, options)
    (ours,) = benchmark.contenders(str(config), [], 5)
    benchmark.compare(benchmark.Case('forward', (64, 64), num_classes=5), [other, ours], 1, with_memory=False)
    assert other.parameters > 1e7 > ours.parameters and ours.agreement is None


def test_amp(config):
    models = benchmark.contenders(str(config), ['mmseg'])
    benchmark.compare(benchmark.Case('forward', (32, 32), dtype='bf16'), models, 1, with_memory=False)
    assert 0 < models[1].agreement < 0.5


def test_loader(tmp_path):
    make_shapes(str(tmp_path / 'data'), num_images=5, size=(48, 64))
    path = tmp_path / 'loader.py'
    path.write_text(f"""
train_dataloader = dict(dataset=dict(
    type='ADE20KDataset', data_root='{tmp_path / 'data'}',
    data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    pipeline=[dict(type='LoadImage'), dict(type='LoadLabelMap', imdecode_backend='pillow'),
              dict(type='RandomCrop', crop_size=(32, 32)), dict(type='PackSegInputs')]))
""")
    times = benchmark.loader(str(path), images=3, vs_mmseg=True)
    names = ['LoadImageFromFile', 'LoadAnnotations', 'RandomCrop', 'PackSegInputs']
    assert [name for name, _ in times.beside] == names
    assert [name for name, _ in times.transforms] == ['LoadImage', 'LoadLabelMap', *names[2:]]
    assert all(ms > 0 for _, ms in times.transforms + times.beside)
    assert f'{times.cost_of_loaders:+.1%}' in benchmark.loader_table('a', times)


def test_wrong_input(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.py not found'):
        benchmark.contenders('nowhere.py')
    for name in ('mmseg::fcn/nowhere.py', 'nowhere::a/fcn.py', 'nowhere::fcn.py'):
        with pytest.raises(FileNotFoundError, match=f'config {name} not found'):
            benchmark.contenders(name)
    (tmp_path / 'empty.py').write_text('a = 1')
    with pytest.raises(ValueError, match='has no model'):
        benchmark.contenders(str(tmp_path / 'empty.py'))
    with pytest.raises(ValueError, match='dist_token'):
        benchmark.contenders(str(config), ['mmseg'], None, {'model.backbone.with_dist_token': True})


def test_each_pair_shares_weights(config):
    models = benchmark.contenders(str(config), ['mmseg']) + benchmark.contenders(str(config), ['mmseg'])
    benchmark.compare(benchmark.Case('forward', (32, 32)), models, 1, with_memory=False)
    assert [side.agreement is None for side in models] == [True, False, True, False]
    assert models[1].agreement < 1e-5 and models[3].agreement < 1e-5


def test_config_without_test_cfg(config):
    config.write_text(config.read_text().partition('    test_cfg')[0] + ')')
    models = benchmark.contenders(str(config), ['mmseg'])
    benchmark.compare(benchmark.Case('slide', (40, 40)), models, 1, with_memory=False)
    assert models[1].agreement > 0.999


@pytest.mark.parametrize('names', [{}, dict(Segmenter='EncoderDecoder', SegmenterViT='VisionTransformer')])
def test_the_baseline_has_nothing_of_ours(config, names):
    """Under drop_in mmseg's names are ours."""
    text = config.read_text()
    for ours, theirs in names.items():
        text = text.replace(f"'{ours}'", f"'{theirs}'")
    config.write_text(text)
    registered = {name: MODELS.get(name) for name in ('EncoderDecoder', 'VisionTransformer')}
    try:
        MODELS.register_module(name='EncoderDecoder', module=mmseg_segmenter.Segmenter, force=True)
        MODELS.register_module(name='VisionTransformer', module=mmseg_segmenter.SegmenterViT, force=True)
        theirs = benchmark.Workload(
            benchmark.Case('forward', (32, 32)), benchmark.contenders(str(config), ['mmseg'])[0]
        )
    finally:
        for name, module in registered.items():
            MODELS.register_module(name=name, module=module, force=True)
    assert not [m for m in theirs.model.modules() if type(m).__module__.startswith('mmseg_segmenter')]


def test_mmsegs_classes_are_really_mmsegs(config):
    from mmseg.models import VisionTransformer

    theirs, ours = benchmark.contenders(str(config), ['mmseg'])
    assert theirs.config.backbone.type is VisionTransformer
    assert theirs.config.type.__module__.startswith('mmseg.') and ours.config.type == 'Segmenter'
    assert isinstance(theirs.config, type(Config({'a': {}}).a))
    assert 'size_divisor' not in theirs.config.test_cfg and 'size_divisor' not in ours.config.test_cfg


def test_a_model_that_fails_leaves_the_others(config, monkeypatch):
    models = benchmark.contenders(str(config), ['mmseg'])
    case = benchmark.Case('forward', (32, 32))
    for error, reason in ((torch.OutOfMemoryError('CUDA'), 'out of memory'), (KeyError('lost'), "KeyError: 'lost'")):
        monkeypatch.setattr(VisionTransformer, 'forward', lambda *_, error=error: (_ for _ in ()).throw(error))
        benchmark.compare(case, models, 2, with_memory=False, keep_going=True)
        theirs, ours = models
        assert theirs.error == reason and theirs.median is None and theirs.agreement is None
        assert ours.error is None and len(ours.seconds) == 2 and ours.agreement is None
        assert reason in benchmark.table(case, models)
        row = benchmark.record(case, models)['contenders'][0]
        assert row['error'] == reason and row['median'] is row['speed'] is None
    with pytest.raises(KeyError, match='lost'):
        benchmark.compare(case, models, 2, with_memory=False)


def test_repeats_stop_after_the_time_given(config):
    (ours,) = benchmark.contenders(str(config))
    benchmark.compare(benchmark.Case('forward', (32, 32)), [ours], 50, with_memory=False, seconds=0)
    assert len(ours.seconds) == 3


def test_the_products_of_a_training_step_count_three_times(config):
    gflops = []
    for mode in ('forward', 'train'):
        (ours,) = benchmark.contenders(str(config))
        benchmark.compare(benchmark.Case(mode, (32, 32), 2), [ours], 1, with_memory=False)
        gflops.append(ours.gflops)
    assert gflops[1] == pytest.approx(3 * gflops[0])


@pytest.mark.parametrize('library', ['timm', 'transformers'])
def test_backbones_of_other_libraries_agree(config, library):
    """The same weights under the names of the other library give the same features."""
    if reason := why_missing(library):
        pytest.skip(reason)
    models = benchmark.contenders(str(config), [library])
    benchmark.compare(benchmark.Case('backbone', (40, 40), 2), models, 1, with_memory=False)
    assert models[1].parameters == models[0].parameters and models[1].agreement < 1e-5


def test_a_library_that_is_not_installed_is_named(config, monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    models = benchmark.contenders(str(config), ['timm'])
    benchmark.compare(benchmark.Case('backbone', (32, 32)), models, 1, with_memory=False, keep_going=True)
    assert models[0].error is None and 'timm was left out: ' in models[1].error


def test_weights_under_the_names_of_transformers(config):
    """As transformers 5 names them, without the library."""
    (ours,) = benchmark.contenders(str(config))
    state = MODELS.build(ours.config.backbone).state_dict()
    found = _timm_to_transformers(timm_format.from_mmseg(state))
    assert len(found) == len(state) + 4 * 2  # each block has three projections, with biases, instead of one
    q, k, v = (found[f'layers.1.attention.{name}_proj.weight'] for name in 'qkv')
    assert torch.equal(torch.cat((q, k, v)), state['layers.1.attn.attn.in_proj_weight'])
    assert torch.equal(found['layers.0.mlp.fc2.bias'], state['layers.0.ffn.layers.1.bias'])
    assert torch.equal(found['layernorm.weight'], state['ln1.weight'])


def test_tf32_is_set_for_the_block_only():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for tf32 in (True, False):
        with benchmark.float32_products(tf32):
            assert [backend.allow_tf32 for backend in backends] == [tf32, tf32]
        assert [backend.allow_tf32 for backend in backends] == before


class FakeGpu:
    """Counts what models hold, as torch.cuda does."""

    def __init__(self, monkeypatch):
        self.held = self.most = 0
        for name in ('synchronize', 'empty_cache'):
            monkeypatch.setattr(torch.cuda, name, lambda: None)
        monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda: self.held)
        monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: self.most)
        monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda: setattr(self, 'most', self.held))
        monkeypatch.setattr(measure, 'device', lambda: 'cuda')
        monkeypatch.setattr(measure, 'timed', lambda run: (run(), 1.0)[1])

    def take(self, gigabytes):
        self.held += int(gigabytes * 2**30)
        self.most = max(self.most, self.held)


def test_memory_on_a_gpu_is_of_one_model_alone(config, monkeypatch):
    """Each has weights, in training momentum from its first step on, and activations that go again."""
    gpu = FakeGpu(monkeypatch)
    models = benchmark.contenders(str(config), ['mmseg'])

    class Workload:
        def __init__(self, case, side, weights):
            self.size = 2 if side.kind == 'mmseg' else 1
            self.model, self.gflops, self.loaded, self.runs = torch.nn.Identity(), None, False, 0
            gpu.take(self.size)

        def __call__(self):
            gpu.take(self.size if self.runs == 0 else 0)
            gpu.take(10 * self.size)
            gpu.take(-10 * self.size)
            self.runs += 1

        def loss(self):
            return 0.0

    monkeypatch.setattr(measure, 'Workload', Workload)
    benchmark.compare(benchmark.Case('train', (32, 32)), models, 1)
    assert [(side.model_gb, side.peak_gb) for side in models] == [(4, 24), (2, 12)]


def test_frozen_without_training(monkeypatch, capsys):
    """The two would be the same."""
    tool = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'benchmark.py'
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', 'config.py', '--vs', 'frozen'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(tool), run_name='__main__')
    assert '--vs frozen --mode forward: expected --mode train' in capsys.readouterr().err
