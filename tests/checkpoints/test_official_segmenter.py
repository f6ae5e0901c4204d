import official
import pytest
import torch

from mmseg_segmenter.checkpoints.formats import official_segmenter


@pytest.mark.parametrize('name', ['linear', 'mask_transformer'])
def test_there_and_back_bit_for_bit(name):
    theirs = official.weights(official.load(name))
    theirs |= {'encoder.head.weight': torch.zeros(2), 'encoder.head.bias': torch.zeros(2)}
    conversion = official_segmenter.to_mmseg(theirs)
    assert conversion.dropped == ['encoder.head.bias', 'encoder.head.weight']
    again = official_segmenter.from_mmseg(conversion.state_dict)
    assert again.keys() == theirs.keys() - set(conversion.dropped)
    assert all(torch.equal(again[key], theirs[key]) for key in again)
    assert official.build(name, official.load(name)).state_dict().keys() == conversion.state_dict.keys()


def test_depths_come_from_the_weights():
    theirs = official.weights(official.load('mask_transformer'))
    one_layer = {k: v for k, v in theirs.items() if not k.startswith(('decoder.blocks.1.', 'encoder.blocks.2.'))}
    state = official_segmenter.to_mmseg(one_layer).state_dict
    assert {k.split('.')[2] for k in state if k.startswith('backbone.layers')} == {'0', '1'}
    assert {k.split('.')[2] for k in state if k.startswith('decode_head.layers')} == {'0'}


@pytest.mark.parametrize('name', ['linear', 'mask_transformer'])
def test_missing_and_unknown_keys_are_listed(name):
    theirs = official.weights(official.load(name))
    del theirs['encoder.blocks.1.norm1.weight']
    theirs['decoder.extra'] = torch.zeros(1)
    message = r'missing: encoder\.blocks\.1\.norm1\.weight; not known: decoder\.extra'
    with pytest.raises(ValueError, match=message):
        official_segmenter.to_mmseg(theirs)
