"""Checkpoints of EoMT: of the authors' code, as deltas, of transformers, and back."""

import json

import pytest
import torch
from mmseg.registry import MODELS
from tiny_eomt import LOSS, official
from torch.testing import assert_close

from mmseg_segmenter.checkpoints.eomt import convert_eomt, read_eomt, write_official_eomt
from mmseg_segmenter.checkpoints.formats import find_format
from mmseg_segmenter.errors import UserError

HEADS = dict(dinov2=3, dinov3=4)


def save(path, weights):
    """As Lightning saves them, with the weights of its loss."""
    state = {f'network.{key}': value for key, value in weights.items()}
    torch.save(dict(state_dict=state | {'criterion.empty_weight': torch.ones(6)}), path)
    return str(path)


def convert(folder, name, weights, **options):
    source = save(folder / f'{name}.ckpt', weights)
    return convert_eomt(source, str(folder / 'out.pth'), num_heads=HEADS[name], verify=True, **options)


@pytest.mark.parametrize('name', ['dinov2', 'dinov3'])
def test_files_are_verified_build_their_model_and_convert_back(tmp_path, name):
    weights = official(name)[2]
    assert find_format(weights).NAME == 'EoMT'
    result = convert(tmp_path, name, weights, whole=name == 'dinov3')
    assert result.verified.difference < 1e-12 * result.verified.magnitude
    written = torch.load(tmp_path / 'out.pth', weights_only=True)
    config = written['meta']['model']
    assert config['decode_head']['num_queries'] == 6 and config['decode_head']['num_classes'] == 5
    model = MODELS.build(dict(config, decode_head=dict(config['decode_head'], loss_decode=LOSS)))
    model.load_state_dict(written['state_dict'], strict=True)
    write_official_eomt(str(tmp_path / 'out.pth'), str(tmp_path / 'back.ckpt'))
    back = torch.load(tmp_path / 'back.ckpt', weights_only=True)['state_dict']
    expected = {f'network.{key}': value for key, value in weights.items() if 'pixel' not in key}
    assert back.keys() == expected.keys() and all(torch.equal(back[key], expected[key]) for key in back)


def transformers_names(weights):
    """Name the encoder as transformers does, and shift it away from the weights."""
    prefix = 'encoder.backbone.'
    encoder = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    names = {'patch_embed.': 'embeddings.', 'blocks.': 'layer.', 'norm.': 'norm.'}
    return {
        next(new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)): torch.randn_like(value)
        for key, value in encoder.items()
    }


def deltas_of(weights, base):
    names = {'embeddings.': 'patch_embed.', 'layer.': 'blocks.', 'norm.': 'norm.'}
    deltas = dict(weights, attn_mask_probs=weights['attn_mask_probs'] * 0 - 1)
    for key, value in base.items():
        ours = next(new + key.removeprefix(old) for old, new in names.items() if key.startswith(old))
        deltas[f'encoder.backbone.{ours}'] = weights[f'encoder.backbone.{ours}'] - value
    return deltas


def test_deltas_are_added_to_their_base(tmp_path):
    weights = official('dinov3')[2]
    base = transformers_names(weights)
    torch.save(base, tmp_path / 'base.pth')
    whole = read_eomt(save(tmp_path / 'whole.ckpt', weights), whole=True, num_heads=4).conversion.state_dict
    result = convert(tmp_path, 'dinov3', deltas_of(weights, base), base=str(tmp_path / 'base.pth'))
    assert result.verified.difference < 1e-12 * result.verified.magnitude and 'base.pth' in str(result)
    found = result.conversion.state_dict
    assert found['decode_head.mask_probabilities'].tolist() == [0, 0]
    for key in whole.keys() - {'decode_head.mask_probabilities'}:
        assert_close(found[key], whole[key], atol=1e-6, rtol=0)


def test_a_base_by_its_name(tmp_path, monkeypatch):
    weights = official('dinov3')[2]
    base = transformers_names(weights)
    (tmp_path / 'pretrain').mkdir()
    torch.save(base, tmp_path / 'pretrain/dinov3_vits16_pretrain_lvd1689m-0123abcd.pth')
    monkeypatch.chdir(tmp_path)
    named = convert(tmp_path, 'dinov3', deltas_of(weights, base), base='dinov3://vits16')
    assert named.base == 'dinov3://vits16'
    for key, tensor in read_eomt(
        save(tmp_path / 'a.ckpt', weights), whole=True, num_heads=4
    ).conversion.state_dict.items():
        if key != 'decode_head.mask_probabilities':
            assert_close(named.conversion.state_dict[key], tensor, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match=r'dinov3://vits17: .*vits16'):
        convert(tmp_path, 'dinov3', weights, base='dinov3://vits17', force=True)


def test_deltas_without_base_are_refused(tmp_path):
    with pytest.raises(UserError, match=r'dinov3\.ckpt has a DINOv3 encoder, which is released as deltas: .* --base'):
        convert(tmp_path, 'dinov3', official('dinov3')[2])
    assert not (tmp_path / 'out.pth').exists()


def test_a_base_of_another_size_is_refused(tmp_path):
    weights = official('dinov3')[2]
    base = transformers_names(weights)
    for key in [key for key in base if 'mlp' in key]:
        base[key] = base[key][:128] if 'up_proj' in key else base[key][..., :128]
    torch.save(base, tmp_path / 'base.pth')
    with pytest.raises(UserError, match=r'base\.pth is of another size .*ffn.*128.*expected.*256'):
        convert(tmp_path, 'dinov3', weights, base=str(tmp_path / 'base.pth'))
    fewer = {key: value for key, value in transformers_names(weights).items() if 'layer.3' not in key}
    torch.save(fewer, tmp_path / 'base.pth')
    with pytest.raises(UserError, match=r'base\.pth is another encoder .*only one of them has layers\.3'):
        convert(tmp_path, 'dinov3', weights, base=str(tmp_path / 'base.pth'))


def test_a_base_of_whole_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'dinov2\.ckpt holds whole weights, not deltas'):
        convert(tmp_path, 'dinov2', official('dinov2')[2], base='base.pth')


def test_damaged_and_other_files_are_refused(tmp_path):
    weights = official('dinov2')[2]
    del weights['mask_head.2.bias']
    with pytest.raises(UserError, match=r'dinov2\.ckpt: cannot convert, keys missing: mask_head\.2\.bias'):
        convert(tmp_path, 'dinov2', weights)
    torch.save(dict(weight=torch.zeros(1)), tmp_path / 'other.pth')
    with pytest.raises(UserError, match=r'other\.pth: the keys \(weight, \.\.\.\) are not those of an EoMT'):
        read_eomt(str(tmp_path / 'other.pth'))
    with pytest.raises(UserError, match=r'other\.pth: cannot convert'):
        write_official_eomt(str(tmp_path / 'other.pth'), str(tmp_path / 'back.pth'))


def test_a_bias_of_the_keys_is_not_dropped(tmp_path):
    result = convert(tmp_path, 'dinov3', official('dinov3')[2], whole=True)
    state = result.conversion.state_dict
    state['backbone.layers.1.attn.attn.in_proj_bias'] += 1
    torch.save(state, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=r'a\.pth: cannot convert, the bias of the keys in attention is not 0'):
        write_official_eomt(str(tmp_path / 'a.pth'), str(tmp_path / 'back.pth'))


@pytest.mark.parametrize('kind', ['Eomt', 'EomtDinov3'])
def test_files_of_transformers(tmp_path, kind):
    library = pytest.importorskip('transformers')
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_blocks=2, num_queries=5)
    config = getattr(library, f'{kind}Config')(**sizes, image_size=64, patch_size=16, num_labels=6)
    theirs = getattr(library, f'{kind}ForUniversalSegmentation')(config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.attn_mask_probs.zero_()
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['num_attention_heads'] == 2
    result = convert_eomt(str(tmp_path / 'model.safetensors'), str(tmp_path / 'out.pth'), verify=True)
    written = torch.load(tmp_path / 'out.pth', weights_only=True)
    model_config = written['meta']['model']
    model = MODELS.build(dict(model_config, decode_head=dict(model_config['decode_head'], loss_decode=LOSS)))
    model.load_state_dict(written['state_dict'], strict=True)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.double().eval()(image)
        masks, classes = model.double().eval()(image)
    # The angles of DINOv3 are of float32 periods and coordinates there.
    atol = 1e-4 if kind == 'EomtDinov3' else 1e-9
    assert_close(masks, expected.masks_queries_logits, atol=atol, rtol=0)
    assert_close(classes, expected.class_queries_logits, atol=atol, rtol=0)
    assert result.verified is not None
