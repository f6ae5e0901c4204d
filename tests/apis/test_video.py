"""Videos, animations and cameras: overlays keep size, times and sound, and damage is reported."""

import contextlib
import itertools
import threading
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.apis.inputs import Task, find_tasks
from mmseg_segmenter.apis.loading import AnnotationFormat
from mmseg_segmenter.apis.outputs import Annotations, OutputSpec
from mmseg_segmenter.apis.pipeline import Pipeline
from mmseg_segmenter.errors import MissingFileError, MissingPackageError, UserError

av = pytest.importorskip('av')

from mmseg_segmenter.apis.video import Stopped, segment_video  # noqa: E402

NTSC = Fraction(30_000, 1001)


def picture(i, size=(48, 64)):
    """Frame i (RGB) of two colours, with the bits of its number as black and white squares."""
    image = np.full((*size, 3), (40, 90, 160), np.uint8)
    image[:, : size[1] // 2] = (200, 60, 40)
    for bit in range(7):
        image[8:24, 8 * bit : 8 * bit + 8] = 255 * (i >> bit & 1)
    return image


def write_video(path, frames=24, rate=NTSC, size=(48, 64), codec='libx264', sound='aac', times=None, **context):
    """Write a video with a sine as its sound; ``times`` are in milliseconds."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), 'w', options={'movflags': '+faststart'} if path.suffix in ('.mp4', '.mov') else {}) as file:
        video = file.add_stream(codec, rate=rate, options={'g': '8'})
        video.height, video.width, video.pix_fmt = *size, context.pop('pix_fmt', 'yuv420p')
        for key, value in context.items():
            setattr(video.codec_context, key, value)
        if times is not None:
            video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        audio = file.add_stream(sound, rate=48_000, layout='mono') if sound else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, size), 'rgb24')
            if context.get('colorspace'):
                frame = frame.reformat(format='yuv420p', dst_colorspace=context['colorspace'])
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if audio is not None:
            wave = np.sin(np.arange(int(frames / rate * 48_000)) * 0.05)
            dtype = {'s16': np.int16, 's32': np.int32, 'flt': np.float32}[audio.codec_context.format.name[:3]]
            scale = 1 if dtype is np.float32 else np.iinfo(dtype).max * 0.5
            step = audio.codec_context.frame_size or 1024
            for start in range(0, len(wave), step):
                part = (wave[None, start : start + step] * scale).astype(dtype)
                frame = av.AudioFrame.from_ndarray(part, audio.codec_context.format.name, 'mono')
                frame.sample_rate, frame.pts = 48_000, start
                file.mux(audio.encode(frame))
            file.mux(audio.encode())
    return path


def read(path, fmt='rgb24'):
    """Return the frames of a video, and their times in seconds."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = list(file.decode(stream))
        return [frame.to_ndarray(format=fmt) for frame in frames], [frame.pts * frame.time_base for frame in frames]


def sound_packets(path):
    with av.open(str(path)) as file:
        start = min((s.start_time or 0) * s.time_base for s in file.streams)
        return [(bytes(p), p.pts * p.time_base - start) for p in file.demux(audio=0) if p.size]


def numbers(frames):
    """The frame numbers that :func:`picture` drew."""
    return [sum((frame[12:20, 8 * bit + 2 : 8 * bit + 6].mean() > 128) << bit for bit in range(7)) for frame in frames]


@pytest.fixture(scope='module')
def predictor(run_folder):
    return Predictor(run_folder, device='cpu')


@pytest.fixture
def segment(predictor, tmp_path):
    """Return a function that segments a video; with opacity 0, overlays are the video itself."""

    def run(path, kinds=('overlay',), kind='video', batch_size=4, progress=lambda share: None, opacity=0.0, **options):
        outputs = OutputSpec(str(tmp_path / 'out'), kinds, opacity, options=options)
        return segment_video(predictor, Task(str(path), 'clip', kind), outputs, batch_size, progress)

    return run


VIDEOS = {
    'a.mp4': {},
    'a.mov': dict(rate=Fraction(25)),
    'a.mkv': {},
    'a.webm': dict(codec='libvpx-vp9', sound='libopus'),
    'a.avi': dict(codec='mjpeg', sound='libmp3lame', rate=Fraction(24), pix_fmt='yuvj420p'),
    'b.mkv': dict(sound='ac3', rate=Fraction(24_000, 1001)),
    'b.mp4': dict(sound=None, rate=Fraction(10)),
    'c.mov': dict(sound='pcm_s16le'),
}


@pytest.mark.parametrize('name', VIDEOS)
def test_size_rate_and_sound(segment, tmp_path, name):
    source = write_video(tmp_path / name, **VIDEOS[name])
    result, rate = segment(source), VIDEOS[name].get('rate', NTSC)
    assert (result.status, result.error) == ('done', '')
    assert (result.height, result.width, sum(result.pixels)) == (48, 64, 24 * 48 * 64)
    suffix = '.mkv' if name == 'c.mov' else '.mp4'
    assert result.files == (f'overlay/clip{suffix}',)
    written = tmp_path / 'out' / result.files[0]
    with av.open(str(source)) as old, av.open(str(written)) as new:
        if name != 'a.avi':  # its writer doubles the first frame
            assert new.streams.video[0].average_rate == old.streams.video[0].average_rate == rate
        assert (new.streams.video[0].codec_context.name, new.streams.video[0].format.name) == ('h264', 'yuv420p')
        assert [s.codec_context.name for s in new.streams.audio] == [s.codec_context.name for s in old.streams.audio]
        assert [s.rate for s in new.streams.audio] == [s.rate for s in old.streams.audio]
    frames, times = read(written)
    assert numbers(frames) == list(range(24)) and frames[0].shape == (48, 64, 3)
    if name == 'a.avi':
        assert times == [i / rate for i in (0, *range(2, 25))]
    else:
        precision = 0 if suffix == '.mp4' else Fraction(1, 1000)
        assert all(abs(time - i / rate) <= precision for i, time in enumerate(times))
    if VIDEOS[name].get('sound', True):
        old, new = sound_packets(source), sound_packets(written)
        assert [data for data, _ in new] == [data for data, _ in old]
        assert max(abs(a - b) for (_, a), (_, b) in zip(old, new, strict=True)) <= Fraction(1, 500)


def test_variable_frame_rate(segment, tmp_path):
    times = [0, 40, 50, 90, 200, 233, 260, 500, 1000, 1040]
    for name in ('a.mp4', 'a.mkv'):
        source = write_video(tmp_path / name, frames=10, times=times, sound=None)
        result = segment(source)
        frames, found = read(tmp_path / 'out' / result.files[0])
        assert numbers(frames) == list(range(10))
        assert [round(time * 1000) for time in found] == times


def test_stream_that_does_not_start_at_0(segment, tmp_path):
    """In MPEG transport streams: pictures and sound keep their distance."""
    source = write_video(tmp_path / 'a.ts')
    result = segment(source)
    written = tmp_path / 'out' / result.files[0]
    (_, old), (_, new) = read(source), read(written)
    shift = sound_packets(source)[0][1], sound_packets(written)[0][1]
    with av.open(str(source)) as file:
        start = min(s.start_time * s.time_base for s in file.streams)
    assert len(new) == 24 and start > 0
    for a, b in zip(old, new, strict=True):
        assert abs((a - start - shift[0]) - (b - shift[1])) < Fraction(1, 1000)


def test_overlays_are_those_of_images(segment, predictor, tmp_path):
    source = write_video(tmp_path / 'a.mp4', frames=5)
    result = segment(source, ('overlay', 'mask', 'labels'), opacity=0.7, batch_size=2)
    assert result.files == ('overlay/clip.mp4', 'mask/clip.mp4', 'labels/clip.mp4')
    frames, _ = read(source, 'bgr24')
    overlays, _ = read(tmp_path / 'out' / 'overlay' / 'clip.mp4')
    pixels = np.zeros(5, int)
    for i, frame in enumerate(frames):
        wanted = predictor.predict(frame)
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / 'out' / 'mask' / 'clip.mp4' / f'{i:06}.png')), wanted.labels
        )
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / 'out' / 'labels' / 'clip.mp4' / f'{i:06}.png')), wanted.labels
        )
        assert np.abs(overlays[i].astype(int) - wanted.overlay(0.7)).mean() < 12  # chroma has half the resolution
        pixels += wanted.class_pixels
    assert list(result.pixels) == pixels.tolist()
    assert len(list((tmp_path / 'out').rglob('*.png'))) == 10
    segment(source, ('mask',), max_frames=3)
    assert len(list((tmp_path / 'out' / 'mask').rglob('*.png'))) == 3


def test_video_beside_its_own_frames(predictor, tmp_path):
    """A video and a folder of its name with images keep their results apart."""
    write_video(tmp_path / 'in' / 'clip.mp4', frames=2)
    for i in range(2):
        (tmp_path / 'in' / 'clip').mkdir(exist_ok=True)
        Image.fromarray(picture(50 + i)).save(tmp_path / 'in' / 'clip' / f'{i:06}.png')
    outputs = OutputSpec(str(tmp_path / 'out'), ('mask',))
    files = [
        file for result in Pipeline(predictor, outputs).run(find_tasks([str(tmp_path / 'in')])) for file in result.files
    ]
    assert sorted(files) == ['mask/clip.mp4', 'mask/clip/000000.png', 'mask/clip/000001.png']
    assert len(list((tmp_path / 'out').rglob('*.png'))) == 4


@pytest.mark.parametrize('size', [(47, 64), (48, 63), (33, 35)])
def test_odd_sizes(segment, tmp_path, size):
    """A row or column is repeated; masks keep the size."""
    source = write_video(tmp_path / 'a.webm', frames=3, size=size, codec='libvpx-vp9', sound=None)
    result = segment(source, ('overlay', 'mask'))
    frames, _ = read(tmp_path / 'out' / result.files[0])
    assert frames[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert (result.height, result.width) == size
    assert Image.open(tmp_path / 'out' / 'mask' / 'clip.webm' / '000002.png').size == size[::-1]


@pytest.mark.parametrize(('degrees', 'matrix'), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_rotation(segment, tmp_path, degrees, matrix):
    """Of a telephone that was held upright: clockwise, by the matrix in the track header of the file."""
    source = write_video(tmp_path / 'a.mp4', frames=3, sound=None)
    content = bytearray(source.read_bytes())
    place = content.index(b'tkhd') + 4 + 40
    for position, value in zip((0, 4, 12, 16), matrix, strict=True):
        content[place + position : place + position + 4] = (value << 16).to_bytes(4, 'big', signed=True)
    turned = tmp_path / 'turned.mp4'
    turned.write_bytes(content)
    result = segment(turned)
    upright = np.rot90(read(source)[0][0], -degrees // 90)
    (found, *_), _ = read(tmp_path / 'out' / result.files[0])
    assert found.shape == upright.shape == (result.height, result.width, 3)
    assert np.abs(found.astype(int) - upright).mean() < 6


def test_colours_and_pixel_shape(segment, tmp_path):
    """With opacity 0 the overlay is the video, whose YUV values change little, and it names the same matrix."""
    wide = dict(colorspace=1, color_primaries=1, color_trc=1, sample_aspect_ratio=Fraction(4, 3))
    source = write_video(tmp_path / 'a.mp4', frames=3, sound=None, **wide)
    result = segment(source)
    with av.open(str(tmp_path / 'out' / result.files[0])) as file:
        stream = file.streams.video[0]
        assert stream.sample_aspect_ratio == Fraction(4, 3)
        frame = next(file.decode(stream))
        assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 1, 1)
    old, new = read(source, 'yuv420p')[0][0], read(tmp_path / 'out' / result.files[0], 'yuv420p')[0][0]
    assert np.abs(old.astype(int) - new).mean() < 2


def test_first_frames_only(segment, tmp_path):
    source = write_video(tmp_path / 'a.mp4', frames=60)
    result = segment(source, max_frames=15)
    written = tmp_path / 'out' / result.files[0]
    assert numbers(read(written)[0]) == list(range(15)) and result.status == 'done'
    end = 15 / NTSC
    assert end - 0.03 < sound_packets(written)[-1][1] < end
    with pytest.raises(UserError, match='max_frames=0; expected at least 1'):
        segment(source, max_frames=0)


# Damage


def test_file_that_was_cut_off(segment, tmp_path):
    for name, frames in (('a.mp4', 60), ('a.mkv', 120)):
        source = write_video(tmp_path / name, frames=frames)
        content = source.read_bytes()
        source.write_bytes(content[: len(content) * 6 // 10])
        result = segment(source)
        assert result.status == 'failed' and 'the file ends after' in result.error
        assert name in result.error and 'frames are written' in result.error
        found, _ = read(tmp_path / 'out' / result.files[0])
        assert 10 < len(found) < frames and numbers(found) == list(range(len(found)))


def test_damaged_frames(segment, tmp_path):
    """The others are written, and in place."""
    source = write_video(tmp_path / 'a.mp4', frames=40, sound=None)
    with av.open(str(source)) as file:
        packets = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    content = bytearray(source.read_bytes())
    position, size = packets[20]
    content[position : position + size] = bytes([255]) * size
    source.write_bytes(content)
    result = segment(source)
    assert result.status == 'failed' and 'damaged at frame' in result.error
    frames, times = read(tmp_path / 'out' / result.files[0])
    assert 30 < len(frames) < 40
    assert numbers(frames[:8]) == list(range(8)) and numbers(frames[-4:]) == [36, 37, 38, 39]
    assert times[-1] == 39 / NTSC


def test_what_is_no_video(segment, predictor, tmp_path):
    (tmp_path / 'text.mp4').write_text('text')
    with pytest.raises(UserError, match=r'text\.mp4 is not a readable video'):
        segment(tmp_path / 'text.mp4')
    with pytest.raises(MissingFileError, match=r'none\.mp4 not found'):
        segment(tmp_path / 'none.mp4')
    cut = write_video(tmp_path / 'cut.mp4')
    cut.write_bytes(cut.read_bytes()[:600])
    with pytest.raises(UserError, match=r'cut\.mp4'):
        segment(cut)
    with av.open(str(tmp_path / 'sound.mp4'), 'w') as file:
        stream = file.add_stream('aac', rate=48_000, layout='mono')
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        frame.sample_rate = 48_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with pytest.raises(UserError, match=r'sound\.mp4 has no video stream'):
        segment(tmp_path / 'sound.mp4')
    outputs = OutputSpec(
        str(tmp_path / 'out'), ('comparison',), annotations=Annotations('', AnnotationFormat('', '', False))
    )
    with pytest.raises(UserError, match='comparisons are not made for videos'):
        segment_video(predictor, Task('a.mp4', 'a', 'video'), outputs, 1, print)
    assert not list((tmp_path / 'out').rglob('*.*'))


def test_stopping_a_file_leaves_nothing(segment, tmp_path):
    def stop(share):
        raise Stopped

    with pytest.raises(Stopped):
        segment(write_video(tmp_path / 'a.mp4'), progress=stop)
    assert not list((tmp_path / 'out').rglob('*.*'))


def test_without_pyav(segment, tmp_path, monkeypatch):
    source = write_video(tmp_path / 'a.mp4', frames=1)
    monkeypatch.setitem(__import__('sys').modules, 'av', None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mmseg_segmenter\[video\]' or pip install av"):
        segment(source)
    assert segment(write_animation(tmp_path / 'a.gif'), ('labels',), kind='animation').status == 'done'


def test_without_h264(segment, tmp_path, monkeypatch):
    source = write_video(tmp_path / 'a.mp4')
    monkeypatch.setattr(av, 'codecs_available', av.codecs_available - {'libx264'})
    result = segment(source)
    with av.open(str(tmp_path / 'out' / result.files[0])) as file:
        assert file.streams.video[0].codec_context.name == 'mpeg4'
        assert file.streams.video[0].average_rate == NTSC
    assert numbers(read(tmp_path / 'out' / result.files[0])[0]) == list(range(24))


# Animations


def write_animation(path, frames=6, size=(48, 64), durations=(100, 50, 200, 30, 70, 400)):
    images = [Image.fromarray(picture(i, size)) for i in range(frames)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=list(durations[:frames]), loop=0)
    return path


@pytest.mark.parametrize('name', ['a.gif', 'a.webp', 'a.png'])
def test_animation(segment, tmp_path, name):
    source = write_animation(tmp_path / name)
    result = segment(source, kind='animation')
    frames, times = read(tmp_path / 'out' / result.files[0])
    assert numbers(frames) == list(range(6))
    assert [round(time * 1000) for time in times] == [0, 100, 150, 350, 380, 450]
    with av.open(str(tmp_path / 'out' / result.files[0])) as file:
        assert file.duration == 850_000


def test_animation_that_was_cut_off(segment, tmp_path):
    source = write_animation(tmp_path / 'a.gif')
    source.write_bytes(source.read_bytes()[:-60])
    result = segment(source, kind='animation')
    assert result.status == 'failed' and 'damaged at frame' in result.error
    frames, _ = read(tmp_path / 'out' / result.files[0])
    assert 3 <= len(frames) < 6 and numbers(frames) == list(range(len(frames)))


# Cameras


class FakeCamera:
    """A camera that gives a number of frames."""

    frames = 1000
    opened: ClassVar[list] = []

    def __init__(self, device):
        self.device, self.read_frames = device, 0
        FakeCamera.opened.append(self)

    def isOpened(self):  # noqa: N802
        return self.device in (0, 'rtsp://host/stream')

    def get(self, _):
        return 30.0

    def read(self):
        self.read_frames += 1
        if self.read_frames > self.frames:
            return False, None
        return True, picture(self.read_frames - 1)[..., ::-1]

    def release(self):
        self.device = None


@pytest.fixture
def camera(monkeypatch):
    monkeypatch.setattr(cv2, 'VideoCapture', FakeCamera)
    monkeypatch.setattr(FakeCamera, 'opened', [])
    return FakeCamera


def test_camera(segment, camera, tmp_path):
    for source in ('camera:0', 'camera:rtsp://host/stream'):
        result = segment(source, kind='camera', max_frames=9)
        frames, times = read(tmp_path / 'out' / result.files[0])
        assert result.status == 'done' and numbers(frames) == list(range(9))
        assert all(a < b for a, b in itertools.pairwise(times))
    assert [one.device for one in camera.opened] == [None, None]


def test_stopping_a_camera_leaves_a_video_that_plays(segment, camera, tmp_path):
    calls = []

    def progress(share):
        calls.append(share)
        if len(calls) == 3:
            raise Stopped

    result = segment('camera:0', kind='camera', progress=progress, batch_size=2)
    assert result.status == 'done'
    assert numbers(read(tmp_path / 'out' / result.files[0])[0]) == list(range(6))


def test_camera_that_is_lost(segment, camera, tmp_path, monkeypatch):
    monkeypatch.setattr(camera, 'frames', 5)
    result = segment('camera:0', kind='camera')
    assert result.status == 'failed' and 'camera:0: it gave no more pictures after 5' in result.error
    assert len(read(tmp_path / 'out' / result.files[0])[0]) == 5
    with pytest.raises(MissingFileError, match='camera:7: no such camera'):
        segment('camera:7', kind='camera')


def test_capture_of_opencv(segment, tmp_path):
    """Which opens files as well as devices."""
    source = write_video(tmp_path / 'a.avi', frames=8, codec='mjpeg', sound=None, pix_fmt='yuvj420p')
    result = segment(f'camera:{source}', kind='camera', max_frames=6)
    assert result.status == 'done'
    assert numbers(read(tmp_path / 'out' / result.files[0])[0]) == list(range(6))


# In the pipeline


def test_stopping_a_run_at_a_camera(predictor, camera, tmp_path):
    """Ctrl-C ends the recording, which is done; inputs behind it are not begun."""
    shares = []
    pipeline = Pipeline(predictor, OutputSpec(str(tmp_path / 'out')), progress=lambda task, share: shares.append(share))
    tasks = [*find_tasks(['camera:0']), Task(str(tmp_path / 'none.mp4'), 'none', 'video')]
    (result,) = pipeline.run(tasks, stop=lambda: len(shares) >= 5)
    assert (result.status, result.error) == ('done', '')
    assert len(read(tmp_path / 'out' / result.files[0])[0]) == 6


def test_kinds_of_inputs(predictor, camera, tmp_path):
    """A folder with a video, an animation and an image; a camera beside it."""
    folder = tmp_path / 'in'
    folder.mkdir()
    write_video(folder / 'clip.mp4', frames=5)
    write_animation(folder / 'moving.gif')
    Image.fromarray(picture(0)).save(folder / 'still.gif')
    Image.fromarray(picture(0)).save(folder / 'photo.png')
    tasks = find_tasks([str(folder), 'camera:0'])
    outputs = OutputSpec(str(tmp_path / 'out'), options={'max_frames': 4})
    results = {result.name: result for result in Pipeline(predictor, outputs, batch_size=3).run(tasks)}
    assert {name: (result.kind, result.status) for name, result in results.items()} == {
        'clip': ('video', 'done'),
        'moving': ('animation', 'done'),
        'still': ('image', 'done'),
        'photo': ('image', 'done'),
        'camera-0': ('camera', 'done'),
    }
    for name in ('clip', 'moving', 'camera-0'):
        assert len(read(tmp_path / 'out' / 'overlay' / f'{name}.mp4')[0]) == 4


def test_batches_and_threads(predictor, tmp_path, monkeypatch):
    """Batches have the size that was asked for, and no thread is left."""
    sizes, names = [], set()
    run, prepare, write = predictor.segment, predictor.prepare, OutputSpec.write
    monkeypatch.setattr(predictor, 'segment', lambda batch: sizes.append(len(batch)) or run(batch))
    monkeypatch.setattr(predictor, 'prepare', lambda x: names.add(threading.current_thread().name) or prepare(x))

    def noted(self, prediction, name):
        names.add(threading.current_thread().name)
        return write(self, prediction, name)

    monkeypatch.setattr(OutputSpec, 'write', noted)
    source, before = write_video(tmp_path / 'a.mp4', frames=10), threading.active_count()
    outputs = OutputSpec(str(tmp_path / 'out'), ('overlay', 'labels'))
    segment_video(predictor, Task(str(source), 'a', 'video'), outputs, 4, lambda share: None)
    assert sizes == [4, 4, 2]
    assert len(names) == 2 and threading.current_thread().name not in names
    assert threading.active_count() == before


def test_sound_that_no_container_holds(segment, tmp_path, monkeypatch):
    """The pictures are written without it, and the loss is reported."""
    source = write_video(tmp_path / 'a.mp4')

    def refuse(self, template):
        raise ValueError("'mp4' format does not support 'aac' codec")

    class Output:
        """An output container that takes no sound."""

        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        add_stream_from_template = refuse

    monkeypatch.setattr(av, 'open', lambda *args, real=av.open, **options: (
        Output(real(*args, **options)) if 'w' in args else real(*args, **options)))  # fmt: skip
    result = segment(source)
    assert result.status == 'failed' and 'its sound cannot be kept' in result.error
    monkeypatch.undo()
    assert numbers(read(tmp_path / 'out' / result.files[0])[0]) == list(range(24))


def test_video_of_a_web_server(predictor, tmp_path):
    write_video(tmp_path / 'web' / 'clip.mp4', frames=6)
    handler = partial(QuietHandler, directory=str(tmp_path / 'web'))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}'
        tasks = find_tasks([f'{url}/clip.mp4', f'{url}/none.mp4'])
        good, bad = sorted(Pipeline(predictor, OutputSpec(str(tmp_path / 'out'))).run(tasks), key=lambda r: r.name)
        server.shutdown()
    assert (good.status, good.error, good.kind) == ('done', '', 'video')
    frames, _ = read(tmp_path / 'out' / good.files[0])
    assert numbers(frames) == list(range(6)) and sound_packets(tmp_path / 'out' / good.files[0])
    assert bad.status == 'failed' and 'none.mp4 is not a readable video' in bad.error


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_video_at_a_uri(predictor, tmp_path):
    import fsspec

    fs = fsspec.filesystem('memory')
    try:
        fs.pipe('/in/clip.mp4', write_video(tmp_path / 'clip.mp4', frames=6).read_bytes())
        (result,) = Pipeline(predictor, OutputSpec('memory://out')).run(find_tasks(['memory://in']))
        assert (result.status, result.error, result.kind) == ('done', '', 'video')
        with fs.open('/out/overlay/clip.mp4') as file, av.open(file) as video:
            assert len(list(video.decode(video=0))) == 6 and len(video.streams.audio) == 1
    finally:
        with contextlib.suppress(FileNotFoundError):
            fs.rm('/', recursive=True)
