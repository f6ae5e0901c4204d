"""The page works in Chromium as a visitor uses it, and asks nobody else for anything."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_client import png_bomb
from PIL import Image
from tiny_run import write_image

from mmseg_segmenter.apis import Prediction
from mmseg_segmenter.app import Models
from mmseg_segmenter.app.page import make_app
from mmseg_segmenter.app.uploads import Limits, temporary_files

playwright = pytest.importorskip('playwright.sync_api')
gradio = pytest.importorskip('gradio')
uvicorn = pytest.importorskip('uvicorn')
CHROMIUM = shutil.which('chromium')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium')
OPTIONS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking'
OPTIONS += ' --disable-component-update --disable-sync'
SIZE = 80, 112  # height and width of the image: ten and fourteen patches
MODES = {'one model': 1, 'two models': 2}


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS.split())
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp('images') / 'photo.png', SIZE)


class Visit:
    """A page that is open in a browser.

    Attributes:
        page: of Playwright.
        folder: of temporary files of the server.
        requests: URLs that the browser asked for.
        problems: errors of scripts.
    """

    def __init__(self, browser: Any, url: str, folder: str) -> None:
        self.page, self.folder = browser.new_page(viewport=dict(width=1280, height=800)), folder
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page.set_default_timeout(20_000)
        self.page.on('request', lambda request: self.requests.append(request.url))
        self.page.on('console', lambda message: message.type == 'error' and self.problems.append(message.text))
        self.page.on('pageerror', lambda error: self.problems.append(str(error)))
        self.url = url
        self.page.goto(url)

    def drop(self, path: Path, name: str | None = None) -> None:
        """Drop a file anywhere on the page."""
        transfer = self.page.evaluate_handle(
            """([numbers, name]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(numbers)], name));
                return transfer;
            }""",
            [list(path.read_bytes()), name or path.name],
        )
        self.page.wait_for_selector('.drop')
        self.page.dispatch_event('body', 'drop', dict(dataTransfer=transfer))

    def overlay(self, x: float, y: float, pane: int = 0) -> list[int]:
        """Return the RGBA colour of the overlay at a point, 0 to 1."""
        return self.page.evaluate(
            """([x, y, pane]) => {
                const canvas = document.querySelectorAll('canvas.labels')[pane];
                return [...canvas.getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data];
            }""",
            [x, y, pane],
        )

    def point(self, x: float, y: float, pane: int = 0) -> tuple[float, float]:
        """Return where in the window a point of the image is."""
        box = self.page.locator('.view').nth(pane).bounding_box()
        return box['x'] + x * box['width'], box['y'] + y * box['height']


@pytest.fixture(params=MODES.values(), ids=MODES)
def visit(models: Models, browser: Any, image: Path, request: Any, monkeypatch: Any) -> Iterator[Visit]:
    """Open the page of a server with one or two models."""
    with temporary_files() as folder:
        monkeypatch.setenv('GRADIO_TEMP_DIR', folder)
        shown = Models(models._predictors[: request.param])
        app = make_app(shown, folder, [str(image)], Limits(megabytes=0.1, megapixels=1))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level='warning', timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
        visit = Visit(browser, f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/', folder)
        yield visit
        visit.page.close()
        app.state.stop.set()
        server.should_exit = True
        thread.join()


def test_a_visit(visit, models, image, tmp_path):
    """Drop an image, look at it, switch classes, move the opacity, hover, click a patch, and download."""
    page, prediction = visit.page, models._predictors[0].predict(image)
    visit.drop(image, 'my photo.png')
    page.wait_for_selector('.view')
    playwright.expect(page.locator('.status')).to_contain_text('my photo.png · 112 \N{MULTIPLICATION SIGN} 80')
    assert not [path for path in Path(visit.folder).rglob('*') if path.is_file()]  # the upload is gone
    check_overlay(visit, prediction)
    check_downloads(visit, prediction, tmp_path)
    check_attention(visit)
    page.get_by_role('button', name='photo.png').click()
    playwright.expect(page.locator('.status')).to_contain_text('photo.png · 112 \N{MULTIPLICATION SIGN} 80')
    foreign = [url for url in visit.requests if not url.startswith((visit.url, 'data:', 'blob:'))]
    assert not foreign and not visit.problems
    assert 'gradio' not in page.locator('body').inner_text().lower()


def check_overlay(visit: Visit, prediction: Prediction) -> None:
    """Overlay and legend are those of the model; switches, opacity and hovering do not ask the server."""
    page, top = visit.page, prediction.legend()[0]
    panes = page.locator('.view').count()
    row, column = np.argwhere(prediction.labels == top.label)[5]
    x, y = (column + 0.5) / SIZE[1], (row + 0.5) / SIZE[0]
    assert visit.overlay(x, y, panes - 1) == [*top.colour, 255]
    rows = page.locator('.legend').first.locator('label').all_inner_texts()
    assert [text.split('\n')[0].strip() for text in rows] == [entry.name for entry in prediction.legend()]
    assert f'{100 * top.share:.1f} %' in rows[0]

    before = len(visit.requests)
    page.locator('.opacity').fill('30')
    assert page.locator('canvas.labels').first.evaluate('(node) => node.style.opacity') == '0.3'
    page.locator('.legend').first.get_by_text(top.name, exact=True).click()
    assert all(visit.overlay(x, y, pane)[3] == 0 for pane in range(panes))
    page.mouse.move(*visit.point(x, y))
    name, _, percent = page.locator('.tip').inner_text().partition(' · ')
    assert name == top.name
    assert abs(int(percent.removesuffix(' %')) - 100 * prediction.confidence[row, column]) <= 1
    assert page.locator('.legend').first.locator('.under').inner_text().strip().startswith(top.name)
    assert len(visit.requests) == before


def check_downloads(visit: Visit, prediction: Prediction, folder: Path) -> None:
    """Files have the size of the image; the overlay is as it is on the screen, here without one class."""
    page, found = visit.page, {}
    for name in ('Palette PNG', 'Class numbers', 'Overlay'):
        with page.expect_download() as download:
            page.get_by_role('link', name=name).first.click()
        download.value.save_as(folder / name)
        found[name] = np.asarray(Image.open(folder / name))
        assert download.value.suggested_filename.startswith('my photo_')
    hidden = prediction.labels == prediction.legend()[0].label
    np.testing.assert_array_equal(found['Palette PNG'], prediction.labels)
    np.testing.assert_array_equal(found['Class numbers'], prediction.labels)
    np.testing.assert_array_equal(found['Overlay'][hidden], prediction.image.rgb[hidden])
    np.testing.assert_array_equal(found['Overlay'][~hidden], prediction.overlay(0.3)[~hidden])
    page.locator('.legend').first.get_by_role('button', name='all').click()
    assert page.locator('.legend').first.locator('input:not(:checked)').count() == 0


def check_attention(visit: Visit) -> None:
    """A click shows the attention of the patch, then its similarity, at the layer and head that are chosen."""
    page, panes = visit.page, visit.page.locator('.view').count()
    page.mouse.click(*visit.point(0.5, 0.25, panes - 1))
    page.locator('.patch').first.wait_for(state='visible')
    assert page.locator('.patch:visible').count() == panes
    assert page.locator('[data-view=attention]').get_attribute('aria-checked') == 'true'
    assert page.locator('.patch').first.evaluate('(node) => [node.style.left, node.style.top]') == ['50%', '20%']
    grid = page.locator('canvas.heat').first
    assert grid.evaluate('(node) => [node.width, node.height]') == [14, 10]
    seen = [grid.evaluate('(node) => node.toDataURL()')]
    for change in (
        lambda: page.locator('.head').select_option('1'),
        lambda: page.locator('.layer').fill('0'),
        lambda: page.locator('[data-view=similarity]').click(),
    ):
        change()
        page.wait_for_function("(seen) => !seen.includes(document.querySelector('canvas.heat').toDataURL())", arg=seen)
        seen.append(grid.evaluate('(node) => node.toDataURL()'))
    page.locator('[data-view=classes]').click()
    assert not page.locator('canvas.heat').first.is_visible() and page.locator('canvas.labels').first.is_visible()


@pytest.mark.parametrize('visit', [1], indirect=True)
def test_garbage_is_survived(visit, image, tmp_path):
    status = visit.page.locator('.status')
    name = '<img src=x onerror=alert(1)>\n図.svg'
    (tmp_path / 'garbage').write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    visit.drop(tmp_path / 'garbage', name)
    playwright.expect(status).to_contain_text('is not an image of a known format')
    assert '<img src=x' in status.inner_text() and '図.svg' in status.inner_text()
    (tmp_path / 'bomb.png').write_bytes(png_bomb())
    visit.drop(tmp_path / 'bomb.png')
    playwright.expect(status).to_contain_text('40000 x 10000 pixels (400 megapixels); expected at most 1 megapixels')
    (tmp_path / 'large').write_bytes(bytes(110_000))
    visit.drop(tmp_path / 'large')
    playwright.expect(status).to_contain_text('at most 0.1 MB')
    visit.drop(image)
    playwright.expect(status).to_contain_text('photo.png · 112 \N{MULTIPLICATION SIGN} 80')
    assert not [path for path in Path(visit.folder).rglob('*') if path.is_file()]
    assert not visit.problems
