import sys

import pytest
from mmengine.config import Config
from mmseg.registry import HOOKS

from mmseg_segmenter import SegmenterVisualizationHook, engine
from mmseg_segmenter.datasets.shapes import make_shapes
from mmseg_segmenter.errors import UserError


def dataset(root, **kwargs):
    return dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        metainfo=dict(classes=('a', 'b')),
        pipeline=[],
        **kwargs,
    )


def loader(dataset_cfg):
    return Config(dict(train_dataloader=dict(dataset=dataset_cfg)))


def test_load_config(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("default_scope = 'mmseg'\nmodel = dict(a=1)\n")
    cfg = engine.load_config(str(path), cfg_options={'model.a': 2})
    assert cfg.work_dir == 'work_dirs/mine' and cfg.model.a == 2 and cfg.launcher == 'none'
    assert engine.load_config(str(path), work_dir='elsewhere').work_dir == 'elsewhere'


def test_missing_config():
    with pytest.raises(FileNotFoundError, match=r'config nowhere\.py not found \(working directory: /'):
        engine.load_config('nowhere.py')


def test_custom_imports_of_options(tmp_path, monkeypatch):
    """mmengine imports only what the file names, so an option would do nothing."""
    (tmp_path / 'config.py').write_text('a = 1\n')
    (tmp_path / 'imported_by_option.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    engine.load_config(str(tmp_path / 'config.py'), cfg_options=['custom_imports.imports=imported_by_option'])
    assert sys.modules.pop('imported_by_option')
    with pytest.raises(UserError, match="--cfg-options: custom_imports failed: No module named 'not_there'"):
        engine.load_config(str(tmp_path / 'config.py'), cfg_options=['custom_imports.imports=not_there'])


def test_missing_checkpoint():
    with pytest.raises(FileNotFoundError, match=r'checkpoint nowhere\.pth not found'):
        engine.find_checkpoint('nowhere.pth')
    assert engine.find_checkpoint('https://example.org/a.pth') == 'https://example.org/a.pth'


def test_good_dataset_passes(tmp_path):
    make_shapes(str(tmp_path), num_images=5, size=(32, 32))
    engine.check_datasets(loader(dataset(tmp_path)), ('train_dataloader', 'val_dataloader'))


@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: dict(type='ConcatDataset', datasets=[d]),
                                  lambda d: dict(type='RepeatDataset', times=2, dataset=d)])  # fmt: skip
def test_missing_dataset_folder(tmp_path, wrap):
    with pytest.raises(FileNotFoundError, match=r'train_dataloader: dataset folder .*/none/images/training not found'):
        engine.check_datasets(loader(wrap(dataset(tmp_path / 'none'))), ('train_dataloader',))


def test_folder_without_matching_images(tmp_path):
    make_shapes(str(tmp_path), num_images=5, size=(32, 32))
    with pytest.raises(ValueError, match=r'train_dataloader: no image \*\.tif in .*images/training'):
        engine.check_datasets(loader(dataset(tmp_path, img_suffix='.tif')), ('train_dataloader',))


def test_list_without_samples(tmp_path):
    make_shapes(str(tmp_path), num_images=5, size=(32, 32))
    cfg = loader(dataset(tmp_path, ann_file='list.txt'))
    with pytest.raises(FileNotFoundError, match=r'train_dataloader: list of samples .*/list.txt not found .*ann_file'):
        engine.check_datasets(cfg, ('train_dataloader',))
    (tmp_path / 'list.txt').write_text('\n \n')
    with pytest.raises(UserError, match=r'list.txt lists no sample, expected at least 1; set train_dataloader.dataset'):
        engine.check_datasets(cfg, ('train_dataloader',))
    (tmp_path / 'list.txt').write_text('scene_00001\n')
    engine.check_datasets(cfg, ('train_dataloader',))


def test_tta_needs_its_parts():
    with pytest.raises(ValueError, match=r'no tta_model and no tta_pipeline'):
        engine.enable_tta(Config(dict(model=dict())))


@pytest.mark.parametrize('hooks', [None, dict(), dict(visualization=dict(type='SegVisualizationHook', interval=9))])
def test_drawing_replaces_the_hook_of_any_config(hooks):
    cfg = Config(dict(default_hooks=hooks) if hooks is not None else dict())
    engine.enable_drawing(cfg, show_dir='x')
    hook = HOOKS.build(cfg.default_hooks.visualization)
    assert isinstance(hook, SegmenterVisualizationHook) and hook.show_dir == 'x' and not hook.show


def test_drawing_keeps_the_settings_of_our_hook():
    ours = dict(type='SegmenterVisualizationHook', suffix='.jpg')
    cfg = Config(dict(default_hooks=dict(visualization=ours)))
    engine.enable_drawing(cfg, show=True, wait_time=5)
    assert cfg.default_hooks.visualization == ours | dict(show=True, wait_time=5)


def test_missing_weights(tmp_path):
    there, missing = str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')
    (tmp_path / 'a.pth').touch()

    def pretrained(checkpoint):
        return dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint))

    for model in (dict(), pretrained(None), pretrained(there), pretrained('augreg://B_16'), dict(pretrained=None)):
        engine.check_weights(Config(dict(model=dict(backbone=model), load_from=None)))
    for model, place in (
        (dict(backbone=pretrained(missing)), 'model.backbone.init_cfg.checkpoint'),
        (dict(pretrained=missing), 'model.pretrained'),
        (dict(auxiliary_head=[dict(), pretrained(missing)]), r'model.auxiliary_head\[1\].init_cfg.checkpoint'),
    ):
        with pytest.raises(FileNotFoundError, match=f'^{place}={missing} not found'):
            engine.check_weights(Config(dict(model=model)))
    with pytest.raises(FileNotFoundError, match=f'checkpoint {missing} not found'):
        engine.check_weights(Config(dict(model=dict(), load_from=missing)))


def test_training_without_validation():
    engine.check_datasets(Config(dict(val_dataloader=None)), ('val_dataloader',))


def test_remote_and_absent_folders_are_left_alone(tmp_path):
    remote = dataset('s3-bucket', backend_args=dict(backend='petrel'))
    engine.check_datasets(loader(remote), ('train_dataloader',))
    make_shapes(str(tmp_path), num_images=5, size=(32, 32))
    unlabelled = dataset(tmp_path)
    unlabelled['data_prefix'] = dict(img_path='images/training', seg_map_path=None)
    engine.check_datasets(loader(unlabelled), ('train_dataloader',))


def test_several_evaluators_and_wrapped_datasets():
    iou, other = dict(type='IoUMetric'), dict(type='CityscapesMetric')
    inner = dict(type='BaseSegDataset', pipeline=[])
    cfg = Config(
        dict(
            test_evaluator=[other, iou],
            test_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[inner, inner])),
            model=dict(decode_head=dict(num_classes=256)),
            tta_model=dict(),
            tta_pipeline=[dict(type='LoadImageFromFile')],
        )
    )
    engine.save_predictions(cfg, 'maps')
    assert cfg.test_evaluator[1].output_dir == 'maps' and 'output_dir' not in cfg.test_evaluator[0]
    engine.enable_tta(cfg)
    assert all(d.pipeline == cfg.tta_pipeline for d in cfg.test_dataloader.dataset.datasets)
    with pytest.raises(ValueError, match='has no IoUMetric'):
        engine.save_predictions(Config(dict(test_evaluator=other)), 'maps')
    cfg.model.module.decode_head.num_classes = 257
    with pytest.raises(ValueError, match='8-bit label maps, for 256 classes at most; num_classes=257'):
        engine.save_predictions(cfg, 'maps')


def test_home_folder_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'a.pth').touch()
    assert engine.find_checkpoint('~/a.pth') == '~/a.pth'
