import pytest
import torch

from mmseg_segmenter.checkpoints.keymap import Rule, cat, convert, invert

RULES = [
    Rule(('a',), 'ours.a'),
    Rule(('b{i}.q', 'b{i}.k'), 'layers.{i}.qk', cat, lambda t: list(t.chunk(2))),
    Rule(('b{i}.bias',), 'layers.{i}.bias', optional=True),
]


def state(**extra):
    return {'a': torch.ones(1), **{f'b{i}.{n}': torch.full((2,), float(i)) for i in (0, 1) for n in 'qk'}, **extra}


def test_maps_joins_and_accounts():
    result = convert(state(**{'head.weight': torch.zeros(1)}), RULES, ('head.*',))
    assert set(result.state_dict) == {'ours.a', 'layers.0.qk', 'layers.1.qk'}
    assert result.state_dict['layers.1.qk'].tolist() == [1.0] * 4
    assert result.origin['layers.1.qk'] == ('b1.q', 'b1.k')
    assert result.dropped == ['head.weight']


def test_inverse_gives_back_the_source():
    source = state(**{'b0.bias': torch.ones(1), 'b1.bias': torch.zeros(1)})
    again = invert(convert(source, RULES).state_dict, RULES)
    assert again.keys() == source.keys() and all(torch.equal(again[k], source[k]) for k in source)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('b0.k'), r'keys missing: b0\.k$'),
        (lambda s: s.update(c=torch.zeros(1)), r'keys not known: c$'),
        (lambda s: s.update({'b1.bias': torch.zeros(1)}), r'keys missing: b0\.bias$'),
        (lambda s: s.update({'b3.q': torch.zeros(1)}), r'keys missing: b2\.q, b2\.k, b3\.k$'),
        (lambda s: s.clear(), r'keys missing: a, b0\.q, b0\.k$'),
    ],
)
def test_every_key_is_accounted_for(change, message):
    source = state()
    change(source)
    with pytest.raises(ValueError, match=message):
        convert(source, RULES)
