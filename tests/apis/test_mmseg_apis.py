"""mmseg's own Python interface works with our configs and checkpoints."""

import cv2
import numpy as np
import pytest
from mmseg.apis import MMSegInferencer, inference_model, init_model, show_result_pyplot
from PIL import Image
from tiny_run import CLASSES, PALETTE, write_image

from mmseg_segmenter.apis import Predictor


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    return write_image(tmp_path_factory.mktemp('image') / 'a.png')


@pytest.fixture(scope='module')
def labels(run_folder, image):
    """What they all should give."""
    found = Predictor(run_folder, device='cpu').predict(image).labels
    assert len(np.unique(found)) > 1
    return found


def test_inference_model(run_folder, image, labels):
    model = init_model(str(run_folder / 'config.py'), str(run_folder / 'model.pth'), device='cpu')
    assert tuple(model.dataset_meta['classes']) == CLASSES
    # arrays last: mmseg then changes the pipeline in the config for good
    for one in (str(image), cv2.imread(str(image))):
        results = [inference_model(model, one), *inference_model(model, [one, one])]
        assert all(np.array_equal(result.pred_sem_seg.data[0], labels) for result in results)


def test_show_result_pyplot(run_folder, image, labels, tmp_path):
    model = init_model(str(run_folder / 'config.py'), str(run_folder / 'model.pth'), device='cpu')
    result = inference_model(model, str(image))
    for with_labels in (True, False):
        show_result_pyplot(
            model,
            str(image),
            result,
            show=False,
            opacity=1.0,
            with_labels=with_labels,
            out_file=str(tmp_path / 'a.png'),
        )
        picture = cv2.imread(str(tmp_path / 'a.png'))[..., ::-1]
        assert np.array_equal(picture, np.array(PALETTE, np.uint8)[labels]) == (not with_labels)


@pytest.mark.parametrize('batch_size', [1, 2])
def test_inferencer(run_folder, image, labels, tmp_path, batch_size):
    inferencer = MMSegInferencer(str(run_folder / 'config.py'), str(run_folder / 'model.pth'), device='cpu')
    found = inferencer([str(image)] * 2, batch_size=batch_size, out_dir=str(tmp_path), show=False)
    assert all(np.array_equal(one, labels) for one in found['predictions'])
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'pred' / '00000001_pred.png')), labels)
    assert (tmp_path / 'vis' / 'a.png').exists()
    alone = inferencer(cv2.imread(str(image)))
    assert np.array_equal(alone['predictions'], labels)
    samples = inferencer(str(image), return_datasamples=True)
    assert np.array_equal(samples.pred_sem_seg.data[0], labels)
