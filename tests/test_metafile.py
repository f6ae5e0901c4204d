"""Published numbers are the same in metafiles, config headers and the model zoo, and mmseg's are those of mmseg."""

import re
from pathlib import Path

import pytest
import yaml
from zoo import CONFIGS as MMSEG

ROOT = Path(__file__).parent.parent
FOLDERS = ('segmenter', 'setr', 'eomt')
METRICS = ('mIoU', 'mIoU(ms+flip)')
NUMBERS = re.compile(r'\b(official|paper|authors|mmseg) (\d+(?:\.\d+)?|-) / (\d+(?:\.\d+)?|-)')
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
ENTRIES = [entry for path in INDEX['Import'] for entry in yaml.safe_load((ROOT / path).read_text())['Models']]


def header(config):
    """Return the comment at the top of a config as one line."""
    lines = (ROOT / config).read_text().split('\n')
    return ' '.join(line[2:] for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != '#')])


def numbers(text):
    """Return the published numbers in a text: {source: {metric: mIoU}}."""
    return {
        source: {metric: float(value) for metric, value in zip(METRICS, values, strict=True) if value != '-'}
        for source, *values in NUMBERS.findall(text)
    }


def test_every_published_experiment_has_an_entry():
    configs = {p.relative_to(ROOT).as_posix() for f in FOLDERS for p in (ROOT / 'configs' / f).glob('*.py')}
    unpublished = {config for config in configs if 'Not a published experiment' in header(config)}
    # on CamVid, shapes and own data, the 59 classes; the Mask Transformer on other pretraining; EoMT
    assert len(unpublished) == 14 + 16 + 9
    assert sorted(entry['Config'] for entry in ENTRIES) == sorted(configs - unpublished)


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['Name'])
def test_entry(entry):
    name, top = entry['Name'], header(entry['Config'])
    assert Path(entry['Config']).stem == name and entry['In Collection'].lower() == name.split('_')[0]
    assert numbers(top) == entry['Published']
    assert entry['Published'] or 'Neither the official README nor the mmseg zoo has a number' in top
    assert re.search(rf'tools/dist_train\.sh {re.escape(entry["Config"])} 8\b', top)
    dataset = entry['Metadata']['Training Data']
    assert entry['Results']['Dataset'] == dataset and dataset.lower().replace(' ', '-') in name
    assert entry['Metadata']['Batch Size'] == 8 * int(re.search(r'8xb(\d)', name)[1])
    assert f'-{round(entry["Metadata"]["Iterations"] / 1000)}k_' in name
    # No experiment was run with this code yet. Results need the log and the weights that show them.
    assert entry['Results']['Metrics'] == dict.fromkeys(METRICS) and entry['Weights'] is None


def test_numbers_of_mmseg_are_in_its_metafiles():
    theirs = {}
    for folder in ('segmenter', 'setr'):
        for model in yaml.safe_load((MMSEG / folder / 'metafile.yaml').read_text())['Models']:
            name = re.sub(r'-(512x512|768x768|640x640)$', '', model['Name']).replace('_fcn_', '_linear_')
            theirs[name] = model['Results']['Metrics']
    compared = 0
    for entry in ENTRIES:
        if 'mmseg' in entry['Published']:
            name = entry['Name'].removesuffix('-640x640')
            # Configs with two images per GPU quote the number of one image per GPU.
            assert entry['Published']['mmseg'] == (theirs.get(name) or theirs[name.replace('8xb2', '8xb1')]), name
            compared += 1
    assert compared == 16


def test_model_zoo_agrees():
    """docs/model_zoo.md lists every config once, with its numbers."""
    by_name = {Path(entry['Config']).name: entry['Published'] for entry in ENTRIES}
    rows = re.findall(
        r'^\| `((?:segmenter|setr|eomt)_\S+\.py)` \|(.*)\|$', (ROOT / 'docs/model_zoo.md').read_text(), re.M
    )
    listed = []
    compared = 0
    for pattern, rest in rows:
        options = re.search(r'\{(.*)\}', pattern)
        for option in options[1].split(',') if options else ['']:
            name = re.sub(r'\{.*\}', option, pattern)
            assert (ROOT / 'configs' / name.split('_')[0] / name).is_file(), name
            listed.append(name)
            if numbers(rest):
                assert numbers(rest) == {s: v for s, v in by_name[name].items() if s in numbers(rest)}, name
                compared += 1
            else:
                assert not by_name.get(name), name
    assert compared >= 12
    assert sorted(listed) == sorted(p.name for f in FOLDERS for p in (ROOT / 'configs' / f).glob('*.py'))
