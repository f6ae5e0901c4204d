"""DINOv2, DINOv3, DeiT-III and MAE: from the files of their authors, timm and transformers to the same tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmseg.registry import MODELS
from torch.testing import assert_close

from mmseg_segmenter.checkpoints.convert import convert_encoder, read_encoder, to_encoder
from mmseg_segmenter.checkpoints.formats import find_encoder_format
from mmseg_segmenter.errors import UserError

DATA = Path(__file__).parents[1] / 'data'
OFFICIAL = ['dinov2', 'dinov2_reg_swiglu', 'dinov3', 'dinov3_swiglu']


def load(name):
    with np.load(DATA / f'{name}.npz') as file:
        arrays = dict(file)
    weights = {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith('sd/')}
    return arrays, json.loads(bytes(arrays['meta_json'])), weights


def encoder_of(name):
    arrays, meta, weights = load(name)
    return arrays, to_encoder(name, weights, meta['num_heads'])


def build(encoder, dtype=torch.float64, **options):
    """Build the model that ``backbone`` describes, and fill it; as in DINOv2, rows are resized in float32."""
    model = MODELS.build(dict(encoder.backbone, output_cls_token=True, **options))
    model.load_state_dict(encoder.conversion.state_dict, strict=True)
    return model.to(dtype).eval()


# Against the authors' code


@pytest.mark.parametrize('name', OFFICIAL)
def test_tokens_equal_the_authors_code(name):
    arrays, encoder = encoder_of(name)
    tags = [key.removeprefix('in/') for key in arrays if key.startswith('in/')]
    assert len(tags) == 2  # grids other than that of the position embedding
    for tag in tags:
        height, width = map(int, tag.split('x'))
        last = encoder.architecture.num_layers - 1
        model = build(encoder, img_size=(height, width), out_indices=(0, last), norm_outputs=True)
        tokens = []
        model.ln1.register_forward_hook(lambda module, args, output, to=tokens: to.append(output))
        with torch.no_grad():
            (first, _), (feature_map, cls_token) = model(torch.from_numpy(arrays[f'in/{tag}']).double())
        expected = {key: torch.from_numpy(arrays[f'{key}_f64/{tag}']) for key in ('patch', 'cls', 'layer0_map')}
        assert_close(feature_map.flatten(2).mT, expected['patch'], atol=1e-9, rtol=0)
        assert_close(cls_token, expected['cls'], atol=1e-9, rtol=0)
        assert_close(first, expected['layer0_map'], atol=1e-9, rtol=0)
        if f'reg_f64/{tag}' in arrays:
            assert_close(tokens[-1][:, 1:5], torch.from_numpy(arrays[f'reg_f64/{tag}']), atol=1e-9, rtol=0)


@pytest.mark.parametrize('name', OFFICIAL)
def test_float32_tokens_at_any_size(name):
    """The model resizes its position embedding itself."""
    arrays, encoder = encoder_of(name)
    model = build(encoder, torch.float32)
    for key in arrays:
        if key.startswith('in/'):
            with torch.no_grad():
                feature_map, cls_token = model(torch.from_numpy(arrays[key]))[0]
            tag = key.removeprefix('in/')
            patches = torch.from_numpy(arrays[f'patch_f64/{tag}']).float()
            assert_close(feature_map.flatten(2).mT, patches, atol=1e-4, rtol=0)
            assert_close(cls_token, torch.from_numpy(arrays[f'cls_f64/{tag}']).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize('name', OFFICIAL)
def test_files_are_verified_and_build_their_model(tmp_path, name):
    _, meta, weights = load(name)
    torch.save(dict(teacher=weights) if name == 'dinov2' else weights, tmp_path / 'a.pth')
    result = convert_encoder(
        str(tmp_path / 'a.pth'), str(tmp_path / 'out.pth'), verify=True, num_heads=meta['num_heads']
    )
    assert result.verified.difference < 1e-9 * result.verified.magnitude
    written = torch.load(tmp_path / 'out.pth', weights_only=True)
    model = MODELS.build(written['meta']['backbone'])
    model.load_state_dict(written['state_dict'], strict=True)
    assert 'backbone=' in str(result)


def test_periods_are_those_of_the_file():
    _, encoder = encoder_of('dinov3')
    weights = load('dinov3')[2]
    model = build(encoder, torch.float32)
    assert torch.equal(model.rope_embed.periods, weights['rope_embed.periods'])
    computed = MODELS.build(encoder.backbone).rope_embed.periods
    assert torch.equal(computed.bfloat16(), weights['rope_embed.periods'].bfloat16())


def test_chunked_blocks():
    _, meta, weights = load('dinov2')
    chunked = {key.replace('blocks.', 'blocks.0.'): value for key, value in weights.items()}
    found = to_encoder('a', chunked, meta['num_heads']).conversion.state_dict
    expected = to_encoder('a', weights, meta['num_heads']).conversion.state_dict
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_masked_bias_of_the_keys_may_be_nan():
    _, meta, weights = load('dinov3')
    width = meta['embed_dims']
    for key in weights:
        if key.endswith('qkv.bias'):
            weights[key][width : 2 * width] = torch.nan
    state = to_encoder('a', weights, meta['num_heads']).conversion.state_dict
    bias = state['layers.0.attn.attn.in_proj_bias']
    assert not bias[width : 2 * width].any() and bias[:width].all()


# The same weights under the names of other projects


def renamed(weights, names):
    for old, new in names.items():
        weights = {key.replace(old, new): value for key, value in weights.items()}
    return weights


def as_timm(name):
    _, meta, weights = load(name)
    if name == 'dinov2_reg_swiglu':
        weights = renamed(weights, {'register_tokens': 'reg_token', 'mlp.w12': 'mlp.fc1', 'mlp.w3': 'mlp.fc2'})
        weights['cls_token'] = weights['cls_token'] + weights['pos_embed'][:, :1]
        weights['pos_embed'] = weights['pos_embed'][:, 1:]
    elif name == 'dinov3_swiglu':
        names = {'storage_tokens': 'reg_token', 'mlp.w1': 'mlp.fc1_g', 'mlp.w2': 'mlp.fc1_x', 'mlp.w3': 'mlp.fc2'}
        weights = renamed(weights, names | {'ls1.gamma': 'gamma_1', 'ls2.gamma': 'gamma_2'})
        for key in [key for key in weights if key.endswith('qkv.bias')]:
            bias = weights.pop(key)
            q, _, v = bias.chunk(3)
            weights[key.replace('qkv.bias', 'q_bias')], weights[key.replace('qkv.bias', 'v_bias')] = q, v
            del weights[f'{key}_mask']
        del weights['rope_embed.periods']
    del weights['mask_token']
    return meta, weights


def test_timm_names_give_the_same_tokens():
    for name in ('dinov2_reg_swiglu', 'dinov2'):
        meta, weights = as_timm(name)
        theirs = to_encoder('a', weights, meta['num_heads'])
        assert find_encoder_format(weights).NAME == 'timm'
        ours = to_encoder('a', load(name)[2], meta['num_heads'])
        assert theirs.architecture.cls_pos_embed is (name == 'dinov2')
        image = torch.randn(1, 3, 70, 98, dtype=torch.float64)
        with torch.no_grad():
            assert_close(build(theirs)(image)[0][0], build(ours)(image)[0][0], atol=1e-6, rtol=0)
    meta, weights = as_timm('dinov3_swiglu')
    assert find_encoder_format(weights).NAME == "timm's DINOv3"
    found = to_encoder('a', weights, meta['num_heads']).conversion.state_dict
    expected = to_encoder('a', load('dinov3_swiglu')[2], meta['num_heads']).conversion.state_dict
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found if 'periods' not in key)


# Against transformers


TINY = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=32)


def transformers_model(kind):
    """Return a model of transformers with random weights, and its tokens of an image at its own size."""
    library = pytest.importorskip('transformers')
    torch.manual_seed(0)
    if kind == 'vit':
        model = library.ViTModel(library.ViTConfig(**TINY, patch_size=8, intermediate_size=96), add_pooling_layer=False)
    elif kind == 'mae':
        model = library.ViTMAEModel(library.ViTMAEConfig(**TINY, patch_size=8, intermediate_size=96, mask_ratio=0.0))
    elif kind.startswith('dinov2'):
        options = dict(patch_size=8, use_swiglu_ffn=kind == 'dinov2_swiglu')
        if kind == 'dinov2_reg':
            config = library.Dinov2WithRegistersConfig(**TINY, **options, num_register_tokens=4)
            model = library.Dinov2WithRegistersModel(config)
        else:
            model = library.Dinov2Model(library.Dinov2Config(**TINY, **options))
    else:
        options = dict(patch_size=8, intermediate_size=96, num_register_tokens=4)
        if kind == 'dinov3_swiglu':
            options.update(use_gated_mlp=True, hidden_act='silu')
        model = library.DINOv3ViTModel(library.DINOv3ViTConfig(**TINY, **options))
    for param in model.parameters():
        if param.requires_grad:  # not the fixed position embedding of MAE
            torch.nn.init.normal_(param, std=0.2)
    return model.double().eval()


KINDS = ['vit', 'mae', 'dinov2', 'dinov2_reg', 'dinov2_swiglu', 'dinov3', 'dinov3_swiglu']


@pytest.mark.parametrize('kind', KINDS)
def test_tokens_equal_transformers(tmp_path, kind):
    theirs = transformers_model(kind)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        if kind == 'mae':  # it shuffles the patches; this noise keeps their order
            expected = theirs(image, noise=torch.arange(16.0)[None]).last_hidden_state
        else:
            expected = theirs(image).last_hidden_state
    theirs.save_pretrained(tmp_path)  # version 5 has other names in memory than in files
    source = str(tmp_path / 'model.safetensors')
    double = read_encoder(source, 1)
    model = build(double)
    if kind.startswith('dinov3'):
        # their periods are computed in float32
        assert double.conversion.state_dict['rope_embed.periods'].dtype == torch.float32
    eps = theirs.config.layer_norm_eps
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps
    with torch.no_grad():
        feature_map, cls_token = model(image)[0]
    atol = 1e-5 if kind.startswith('dinov3') else 1e-9
    assert_close(cls_token, expected[:, 0], atol=atol, rtol=0)
    assert_close(feature_map.flatten(2).mT, expected[:, -16:], atol=atol, rtol=0)
    found = convert_encoder(source, str(tmp_path / 'out.pth'), verify=True, num_heads=1)
    assert 'transformers' in found.verified.reference and not found.conversion.filled


@pytest.mark.parametrize('prefix', ['model.', 'dinov3_vit.'])
def test_layouts_of_both_versions_of_transformers(prefix):
    state = transformers_model('dinov3').state_dict()
    flat = {key.removeprefix('model.'): value for key, value in state.items()}
    nested = {prefix + key: value for key, value in flat.items()}
    one, other = (to_encoder('a', tensors, 1).conversion.state_dict for tensors in (flat, nested))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# What a file does not hold, and files that do not fit


def test_heads_are_read_from_a_config_beside_the_file(tmp_path):
    _, meta, weights = load('dinov2')
    torch.save(weights, tmp_path / 'a.pth')
    (tmp_path / 'config.json').write_text(json.dumps(dict(num_attention_heads=meta['num_heads'])))
    assert read_encoder(str(tmp_path / 'a.pth')).backbone['num_heads'] == meta['num_heads']
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(UserError, match=r'config\.json is not readable as JSON .*; correct or remove it'):
        read_encoder(str(tmp_path / 'a.pth'))
    with pytest.raises(UserError, match='num_heads=7 does not divide the width 64'):
        read_encoder(str(tmp_path / 'a.pth'), 7)


@pytest.mark.parametrize('name', OFFICIAL)
@pytest.mark.parametrize('damage', ['missing', 'renamed', 'shape'])
def test_damaged_files_are_refused_by_key(tmp_path, name, damage):
    _, _, weights = load(name)
    key = 'blocks.1.ls2.gamma'
    if damage == 'shape':
        weights[key] = weights[key][:-1]
    else:
        tensor = weights.pop(key)
        if damage == 'renamed':
            weights['blocks.1.ls3.gamma'] = tensor
    torch.save(weights, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=r'a\.pth: cannot convert, .*blocks\.1\.ls[23]\.gamma'):
        convert_encoder(str(tmp_path / 'a.pth'), str(tmp_path / 'out.pth'))
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('blocks.0.attn.relative_position_bias_table', r'BEiT.*use a backbone'),
        ('blocks.0.attn.inner_attn_ln.weight', r'EVA-02.*use a backbone'),
        ('attn_pool.latent', r'SigLIP.*use a backbone'),
        ('norm_pre.weight', r'CLIP.*use a backbone'),
    ],
)
def test_other_vits_are_refused_by_name(key, message):
    weights = as_timm('dinov2')[1]
    with pytest.raises(UserError, match=message):
        to_encoder('a', weights | {key: torch.zeros(1)})


def test_a_vit_without_class_token_is_refused():
    weights = as_timm('dinov2')[1]
    del weights['cls_token']
    with pytest.raises(UserError, match='no class token'):
        to_encoder('a', weights)


def test_files_load_directly(tmp_path):
    """``init_cfg`` names the foreign file."""
    _, meta, weights = load('dinov3')
    torch.save(weights, tmp_path / 'dinov3.pth')
    encoder = to_encoder('a', weights, meta['num_heads'])
    model = MODELS.build(
        dict(encoder.backbone, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'dinov3.pth')))
    )
    model.init_weights()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in encoder.conversion.state_dict.items())
