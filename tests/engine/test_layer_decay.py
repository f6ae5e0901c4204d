import pytest
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS
from torch import nn


def decay(model, optimizer=None, **paramwise):
    cfg = dict(
        optimizer=optimizer or dict(type='SGD', lr=1.0),
        constructor='ViTLayerDecayOptimWrapperConstructor',
        paramwise_cfg=paramwise,
    )
    return build_optim_wrapper(model, cfg)


def backbone(**kwargs):
    options = dict(type='SegmenterViT', img_size=32, embed_dims=16, num_layers=2, num_heads=2, final_norm=True)
    model = nn.Module()
    model.backbone = MODELS.build({**options, **kwargs})
    return model


def test_decay_reaches_distillation_token_and_first_norm():
    model = backbone(with_dist_token=True, pre_norm=True)
    lrs = {id(group['params'][0]): group['lr'] for group in decay(model, decay_rate=0.5).param_groups}
    found = {name: lrs[id(param)] for name, param in model.backbone.named_parameters()}
    assert found['dist_token'] == found['ln_pre.weight'] == found['patch_embed.projection.bias'] == 0.125
    assert found['layers.0.ln1.weight'] == 0.25 and found['layers.1.ln1.weight'] == 0.5 and found['ln1.weight'] == 1.0


def test_decay_goes_with_other_options_and_frozen_layers():
    model = backbone(frozen_exclude=['layers', 'ln1'])
    options = dict(flat_decay_mult=0.0, custom_keys={'ffn': dict(lr_mult=10.0)})
    wrapper = decay(model, dict(type='SGD', lr=1.0, weight_decay=0.1), decay_rate=0.5, **options)
    by_id = {id(group['params'][0]): (group['lr'], group['weight_decay']) for group in wrapper.param_groups}
    found = {name: by_id.get(id(param)) for name, param in model.backbone.named_parameters()}
    assert found['pos_embed'] is None
    assert found['layers.0.ffn.layers.0.0.weight'] == (2.5, 0.1)
    assert found['layers.0.ln1.weight'] == (0.25, 0.0)


@pytest.mark.parametrize(
    ('optimizer', 'paramwise', 'message'),
    [
        (None, {}, r'decay_rate=None \(keys: none\); expected a number above 0 and at most 1'),
        (None, dict(layer_decay_rate=0.9), r'decay_rate=None \(keys: layer_decay_rate\)'),
        (None, dict(decay_rate=1.5), r'decay_rate=1.5'),
        (dict(type='Adadelta'), dict(decay_rate=0.5), 'layer-wise decay needs optimizer.lr, found none'),
    ],
)
def test_wrong_options_of_the_decay(optimizer, paramwise, message):
    with pytest.raises(ValueError, match=message):
        decay(backbone(), optimizer, **paramwise)


def test_decay_without_a_vit():
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match='needs a ViT backbone with layers, found Conv2d'):
        decay(model, decay_rate=0.5)
