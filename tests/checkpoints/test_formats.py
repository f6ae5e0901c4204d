"""How a layout is recognised, what is refused, and what a file does not hold."""

import sys
from pathlib import Path

import numpy as np
import official
import pytest
import torch
from converters import timm2mmseg
from torch.testing import assert_close

from mmseg_segmenter import SegmenterViT
from mmseg_segmenter.checkpoints import formats
from mmseg_segmenter.checkpoints.architecture import Architecture
from mmseg_segmenter.checkpoints.convert import convert_encoder, read_encoder
from mmseg_segmenter.checkpoints.formats import augreg, find_encoder_format, find_format, official_segmenter, timm
from mmseg_segmenter.checkpoints.verify import verify_encoder

NPZ = Path(__file__).parents[1] / 'data' / 'augreg_tiny_i21k.npz'
VIT = dict(img_size=24, patch_size=8, embed_dims=64, num_layers=2, num_heads=1, final_norm=True)


@pytest.fixture(autouse=True)
def _without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)


def timm_state(**options):
    model = SegmenterViT(**VIT, **options)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.5)
    return timm.from_mmseg(model.state_dict())


def npz_state():
    with np.load(NPZ) as file:
        return {key: torch.from_numpy(array) for key, array in file.items()}


def save(path, state):
    torch.save(state, path)
    return str(path)


def refusal(source, folder):
    """The one line with which the command line ends."""
    with pytest.raises(SystemExit) as end:
        timm2mmseg(source, folder / 'out.pth')
    assert '\n' not in end.value.code and not (folder / 'out.pth').exists()
    return end.value.code


# Recognition


def test_every_format_recognises_its_own_files_only():
    files = {
        augreg: npz_state(),
        timm: timm_state(),
        official_segmenter: official.weights(official.load('mask_transformer')),
    }
    assert set(files) <= set(formats.formats())
    for layout, tensors in files.items():
        assert [each for each in files if each.detect(tensors)] == [layout]
        assert find_format(tensors) is layout


def test_unknown_layout_is_one_line(tmp_path):
    source = save(tmp_path / 'a.pth', {'conv1.weight': torch.zeros(1), 'fc.bias': torch.zeros(1)})
    line = refusal(source, tmp_path)
    assert f'{source}: cannot convert, the keys (conv1.weight, fc.bias) are those of no known layout' in line
    assert 'JAX' in line and 'timm' in line


def test_official_weights_are_sent_to_their_converter(tmp_path):
    source = save(tmp_path / 'a.pth', official.weights(official.load('linear')))
    with pytest.raises(ValueError, match=r'official layout of a whole segmentor.*segm2mmseg\.py converts it'):
        read_encoder(source)


NEW_FORMAT = """
from mmseg_segmenter.checkpoints.formats import timm
from mmseg_segmenter.checkpoints.keymap import convert

NAME, CONVERTER, EPS, REFINES = 'toy', 'timm2mmseg.py', 1e-6, timm
RULES = [*timm.RULES]
detect = lambda tensors: 'toy.mark' in tensors
num_heads = lambda state: 1
source_sizes, reference_tokens = timm.source_sizes, timm.reference_tokens
to_mmseg = lambda state: convert(state, RULES, ('toy.mark',))
"""


def test_a_new_format_is_one_new_file(tmp_path, monkeypatch):
    """It is found without being listed, also where a more general format recognises the same files."""
    (tmp_path / 'toy.py').write_text(NEW_FORMAT)
    monkeypatch.setattr(formats, '__path__', [*formats.__path__, str(tmp_path)])
    formats.formats.cache_clear()
    try:
        tensors = timm_state() | {'toy.mark': torch.zeros(1)}
        assert timm.detect(tensors) and find_encoder_format(tensors).NAME == 'toy'
        result = convert_encoder(save(tmp_path / 'a.pth', tensors), str(tmp_path / 'out.pth'), verify=True)
        assert result.conversion.dropped == ['toy.mark'] and 'the toy layout' in str(result.verified)
        assert find_encoder_format(timm_state()) is timm
    finally:
        formats.formats.cache_clear()


# Position embeddings without a row for the class token


@pytest.mark.parametrize('with_dist_token', [False, True])
def test_pos_embed_without_rows_for_prefix_tokens_is_kept(tmp_path, with_dist_token):
    state = timm_state(with_dist_token=with_dist_token)
    state['pos_embed'] = state['pos_embed'][:, -9:]
    found = convert_encoder(save(tmp_path / 'a.pth', state), str(tmp_path / 'out.pth'), verify=True)
    assert found.backbone['cls_pos_embed'] is False and found.architecture.num_patches == 9


def test_npz_without_a_row_for_the_class_token_is_kept(tmp_path):
    key = 'Transformer/posembed_input/pos_embedding'
    arrays = {k: v.numpy() for k, v in npz_state().items()}
    np.savez(tmp_path / 'a.npz', **{**arrays, key: arrays[key][:, 1:]})
    found = convert_encoder(str(tmp_path / 'a.npz'), str(tmp_path / 'out.pth'), verify=True)
    assert found.backbone['cls_pos_embed'] is False and found.backbone['img_size'] == (32, 32)


def test_verify_reads_the_sizes_on_its_own(tmp_path):
    """From the rows of the source, whatever the conversion took them for."""
    state = timm_state()
    rows = state['pos_embed'] = state['pos_embed'][:, 1:]
    source, written = save(tmp_path / 'a.pth', state), timm.to_mmseg(state).state_dict
    architecture = Architecture(64, 2, 256, 8, 3, num_patches=9, with_dist_token=False, num_parameters=0)
    right = save(tmp_path / 'right.pth', written | dict(pos_embed=torch.cat((torch.zeros(1, 1, 64), rows), 1)))
    assert verify_encoder(source, right, architecture).magnitude > 1
    # the first patch's row for the class token, and those of all others one patch earlier
    wrong = save(tmp_path / 'wrong.pth', written | dict(pos_embed=torch.cat((rows, rows[:, -1:]), 1)))
    with pytest.raises(ValueError, match='verification failed, largest difference'):
        verify_encoder(source, wrong, architecture)


# What a file does not hold


def test_assumptions_are_printed(tmp_path, capsys):
    source = save(tmp_path / 'a.pth', timm_state())
    timm2mmseg(source, tmp_path / 'a_out.pth')
    timm2mmseg(NPZ, tmp_path / 'b_out.pth')
    timms, jaxs = [line for line in capsys.readouterr().out.splitlines() if line.startswith('assumed')]
    assert timms == (
        'assumed, as the file does not hold it: exact (erf) GELU, LayerNorm eps 1e-06, num_heads 1 (width // 64), '
        'square grid of 3x3 patches'
    )
    assert jaxs == (
        'assumed, as the file does not hold it: exact (erf) GELU, LayerNorm eps 1e-06, square grid of 4x4 patches'
    )


def test_absent_qkv_bias_is_written_as_zeros(tmp_path, capsys):
    """So that the default arguments of SegmenterViT give the outputs of the source."""
    state = {key: value for key, value in timm_state().items() if not key.endswith('qkv.bias')}
    source, out = save(tmp_path / 'a.pth', state), str(tmp_path / 'out.pth')
    timm2mmseg(source, out, '--verify')
    text = capsys.readouterr().out
    assert 'dropped nothing; qkv bias absent: written as 0' in text and 'verified: ' in text
    written = torch.load(out, weights_only=True)['state_dict']
    assert all(torch.equal(written[f'layers.{i}.attn.attn.in_proj_bias'], torch.zeros(192)) for i in range(2))
    model = SegmenterViT(**VIT, norm_cfg=dict(type='LN', eps=1e-6), init_cfg=dict(type='Pretrained', checkpoint=out))
    model.init_weights()
    image = torch.randn(1, 3, 24, 24).double()
    with torch.no_grad():
        ours = model.double().eval()(image)[0]
        theirs = timm.reference_tokens(state, image, num_heads=1)[:, 1:].mT.unflatten(2, (3, 3))
    assert theirs.abs().max() > 1
    assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_present_qkv_bias_is_not_reported(tmp_path):
    assert 'qkv bias' not in str(read_encoder(save(tmp_path / 'a.pth', timm_state())))
