"""Compare optimizer, schedule, loss, metric and pipelines of our configs with the authors' code.

The tests change only lengths and sizes in the configs. The tolerances are those of the reference data.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import official
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, METRICS, MODELS
from mmseg.structures import SegDataSample
from torch.testing import assert_close

from mmseg_segmenter.checkpoints.formats import official_segmenter

CONFIGS = Path(__file__).parent.parent / 'configs' / 'segmenter'
DECODERS = {'linear': 'linear', 'mask_transformer': 'mask'}


def paper(decoder='mask'):
    return Config.fromfile(CONFIGS / f'segmenter_vit-b_{decoder}_8xb1-160k_ade20k.py')


def load(name):
    with np.load(official.DATA / f'segm_{name}.npz') as file:
        return dict(file)


def meta(reference, prefix=''):
    return json.loads(bytes(reference[f'{prefix}meta_json']))


def schedule(cfg, wrapper, num_iters):
    """Build the config's scheduler for another number of iterations."""
    (scheduler,) = cfg.param_scheduler
    scheduler.end += num_iters - cfg.train_cfg.max_iters
    return PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=wrapper))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('decoder', DECODERS)
def test_training_steps(decoder, dtype):
    reference = load('train')
    steps = meta(reference, f'{decoder}/')
    cfg = paper(DECODERS[decoder])
    options = dict(loss_decode=cfg.model.decode_head.loss_decode)
    if decoder == 'mask_transformer':
        options.update(drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0)
    model = official.build(decoder, official.load(decoder), **options).to(dtype).train()
    cfg.optim_wrapper.optimizer.lr = steps['lr']
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    scheduler = schedule(cfg, wrapper, steps['iters'])

    losses, lrs = [], []
    for i in range(steps['iters']):
        images = torch.from_numpy(reference[f'in/im{i % 4}']).to(dtype)
        labels = torch.from_numpy(reference[f'in/gt{i % 4}']).long()
        samples = [SegDataSample(gt_sem_seg=PixelData(data=one[None])) for one in labels]
        with wrapper.optim_context(model):
            loss, _ = model.parse_losses(model.loss(images, samples))
        wrapper.update_params(loss)
        scheduler.step()
        losses.append(loss.item())
        lrs += wrapper.get_lr()['lr']

    double = dtype == torch.float64
    expected = reference[f'{decoder}/loss_f64' if double else f'{decoder}/loss']
    np.testing.assert_allclose(losses, expected, atol=1e-9 if double else 1e-5, rtol=0)
    np.testing.assert_allclose(lrs, reference[f'{decoder}/lr_after_step'], atol=1e-15, rtol=0)
    prefix = f'{decoder}/sd_after/'
    # The reference has the weights of its float32 run, which differ by this much from those of its float64 run.
    atol = steps['maxdiff_f64_params'] + 1e-9 if double else 1e-5
    start = official.weights(official.load(decoder))
    after = official_segmenter.from_mmseg(model.state_dict())
    compared = 0
    for key, weight in after.items():
        wanted = torch.from_numpy(reference[prefix + key]).to(dtype)
        assert_close(weight.flatten()[::7], wanted, atol=atol, rtol=0)
        compared += (start[key].flatten()[::7] - wanted).abs().max() > 100 * atol
    assert compared > len(after) / 2  # the steps are large enough to compare


def lr_curve(cfg, num_iters):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.optim_wrapper.optimizer.lr)
    scheduler = schedule(cfg, optimizer, num_iters)
    lrs = [optimizer.param_groups[0]['lr']]
    optimizer.step()  # without it the scheduler warns
    for _ in range(num_iters):
        scheduler.step()
        lrs.append(optimizer.param_groups[0]['lr'])
    return np.array(lrs)


def test_learning_rate():
    official_lrs = load('lr_curves')['poly_lr1e3_max1000'][:1001]
    np.testing.assert_allclose(lr_curve(paper(), 1000), official_lrs, rtol=1e-13)


def test_learning_rate_over_the_whole_run():
    """mmengine computes each rate from the last one; rounding errors must not add up."""
    i = np.arange(160001) / 160000
    np.testing.assert_allclose(lr_curve(paper(), 160000), (1e-3 - 1e-5) * (1 - i) ** 0.9 + 1e-5, rtol=1e-11)


def test_metric():
    reference = load('metrics')
    num_classes = meta(reference)['n_cls']
    metric = METRICS.build(paper().val_evaluator)
    metric.dataset_meta = dict(classes=[str(k) for k in range(num_classes)])
    for i in range(4):
        maps = (torch.from_numpy(reference[f'{kind}/im{i}'])[None].long() for kind in ('pred', 'gt'))
        pred, gt = (dict(data=one) for one in maps)
        metric.process({}, [dict(pred_sem_seg=pred, gt_sem_seg=gt)])
    results = list(metric.results)
    scores = metric.evaluate(size=4)
    found = [scores[name] for name in ('aAcc', 'mAcc', 'mIoU')]
    assert found == [reference[name].item() for name in ('pixel_accuracy', 'mean_accuracy', 'mean_iou')]
    areas = [sum(area) for area in zip(*results, strict=True)]
    by_class = metric.total_area_to_metrics(*areas, metrics=metric.metrics)['IoU']
    np.testing.assert_allclose(by_class, reference['cat_iou'], rtol=1e-6)
    assert np.isnan(by_class[6])  # the class is in neither map


@pytest.fixture(scope='module')
def val_pipeline(tmp_path_factory):
    """Return the reference and our config, with its images as validation set and at its test size."""
    reference = load('val_pipeline')
    root = tmp_path_factory.mktemp('ade20k')
    cfg = paper()
    dataset = cfg.test_dataloader.dataset
    for i in range(2):
        for kind, name in (('img_path', 'bgr_uint8'), ('seg_map_path', 'gt_raw')):
            folder = root / dataset.data_prefix[kind]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f'{i}.png'), reference[f'ade20k/{i}/{name}'])
    dataset.update(data_root=str(root), img_suffix='.png')  # JPEG would change the pixels
    for resize in [cfg.test_pipeline[1], *cfg.tta_pipeline[1].transforms[0]]:
        assert resize.type == 'Resize'
        resize.scale = tuple(side // 8 for side in resize.scale)  # 512 becomes 64
    return reference, cfg


def network_inputs(cfg, images):
    """Return what the model's preprocessor passes to the network."""
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    return [preprocessor(dict(inputs=[image]))['inputs'][0] for image in images]


@pytest.mark.parametrize('i', [0, 1])
def test_single_scale_pipeline(val_pipeline, i):
    reference, cfg = val_pipeline
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = cfg.test_pipeline
    sample = DATASETS.build(dataset)[i]
    (image,) = network_inputs(cfg, [sample['inputs']])
    assert_close(image, torch.from_numpy(reference[f'ade20k/{i}/vit/ss/0']), atol=1e-6, rtol=0)
    annotation = sample['data_samples'].gt_sem_seg.data[0]
    assert_close(annotation, torch.from_numpy(reference[f'ade20k/{i}/gt_used']).long())


def test_multi_scale_pipeline(val_pipeline):
    reference, cfg = val_pipeline
    case = meta(reference)['cases']['ade20k/0/vit/ms']
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = cfg.tta_pipeline
    sample = DATASETS.build(dataset)[0]
    images = network_inputs(cfg, sample['inputs'])
    assert [list(image.shape) for image in images] == case['shapes']
    assert [bool(one.get('flip')) for one in sample['data_samples']] == case['flips']
    for j in range(6):
        assert_close(images[j], torch.from_numpy(reference[f'ade20k/0/vit/ms/{j}']), atol=1e-6, rtol=0)
