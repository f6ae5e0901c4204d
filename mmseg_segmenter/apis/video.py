"""Segment videos, animated images and cameras, frame by frame."""

import contextlib
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np

from ..datasets.image_files import no_pillow_limit, open_image
from ..errors import MissingFileError, MissingPackageError, UserError
from .images import InputImage, decoding, to_bgr
from .inputs import CAMERA, Task, suffix_of
from .journal import Result
from .outputs import OutputSpec
from .pipeline import Stopped
from .prediction import Prediction
from .predictor import Predictor, Prepared
from .storage import file_system, is_uri, list_files, read_bytes, remove_files, write_file

# Sound that MP4 files hold and players expect there. A video with other sound becomes a Matroska file.
_MP4_SOUND = frozenset(('aac', 'ac3', 'alac', 'eac3', 'flac', 'mp3', 'opus'))
_DEFAULT_DURATION = 100  # milliseconds of a frame of an animation that names none, as in browsers
_FINEST = 10_000_000  # units per second of time stamps, at most
_MPEG4_FINEST = 65_535  # the same of the MPEG-4 codec

T = TypeVar('T')


class Colours(NamedTuple):
    """Codes of ITU-T H.273 that say how YUV becomes RGB. An overlay is stored as its source."""

    space: int
    primaries: int
    transfer: int


class Frame(NamedTuple):
    """One picture of a video.

    Attributes:
        bgr: (H, W, 3) uint8, upright.
        pts: when it is shown, in units of the source's ``time_base``.
        duration: how long, in the same units.
        colours: how the file stored the colours, None for RGB.
    """

    bgr: np.ndarray
    pts: int
    duration: int
    colours: Colours | None = None


def segment_video(
    predictor: Predictor, task: Task, outputs: OutputSpec, batch_size: int, progress: Callable[[float], None]
) -> Result:
    """Segment a video, an animated image, or what a camera sees.

    Overlays become a video of the same size, time stamps and sound: H.264 in
    MP4, or in Matroska where MP4 does not hold the sound. An odd width or
    height grows by one pixel, which repeats the last one, as the colour format
    that all players read (4:2:0) needs even sizes. Other outputs are files of
    each frame, ``mask/NAME.mp4/000000.png``. Decoding, the model and encoding run
    at the same time, and memory does not grow with the length.

    Args:
        predictor: the model.
        task: source and name. A source ``camera:N`` or ``camera:URL`` is a
            camera. It is recorded until ``progress`` raises ``Stopped``.
        outputs: what to write, and the option ``max_frames``.
        batch_size: frames per forward pass.
        progress: called with the share that is done, 0 to 1.

    Returns:
        A result with status ``'failed'`` if the video is damaged. The frames
        that could be decoded are written nevertheless.

    Raises:
        MissingFileError: no such file or camera.
        MissingPackageError: PyAV is not installed.
        UserError: ``max_frames`` is not positive, not a video, no frame could be decoded, or no output fits.
    """
    kinds = tuple(kind for kind in outputs.kinds if kind not in ('overlay', 'comparison'))
    if not kinds and 'overlay' not in outputs.kinds:
        raise UserError(f'{task.source}: comparisons are not made for videos; add another output')
    limit = outputs.options.get('max_frames')
    if limit is not None and limit < 1:
        raise UserError(f'max_frames={limit}; expected at least 1')
    if 'overlay' in outputs.kinds:
        _import_av()
    with closing(_open(task)) as source:
        # With the suffix, the folder of the frames is not that of images which someone extracted from the video.
        folder = task.name.removesuffix(suffix_of(task.source)) + suffix_of(task.source)
        files = [f'{kind}/{folder}' for kind in kinds]
        for file in files:
            remove_files(list_files(outputs.path(file)))  # of an earlier run, which may have had more
        stills = replace(outputs, kinds=kinds) if kinds else None
        run = _Run(predictor, task, outputs.opacity, stills, folder, source, batch_size, limit)
        if 'overlay' in outputs.kinds:
            suffix = '.mp4' if _MP4_SOUND.issuperset(source.sounds) else '.mkv'
            files.insert(0, outputs.file('overlay', task.name, suffix))
            write_file(outputs.path(files[0]), lambda path: run(progress, path))
        else:
            run(progress, None)
    height, width = run.size
    result = Result(task.source, task.name, task.kind, height=height, width=width, files=tuple(files))
    result = result._replace(pixels=tuple(run.pixels.tolist()))
    if source.fault:
        error = f'{task.source}: {source.fault}; {run.count} frames are written'
        return result._replace(status='failed', error=error)
    return result


class _Run:
    """The work on one video."""

    def __init__(
        self,
        predictor: Predictor,
        task: Task,
        opacity: float,
        stills: OutputSpec | None,
        folder: str,
        source: Any,
        batch_size: int,
        max_frames: int | None,
    ) -> None:
        self.predictor, self.task, self.opacity, self.source = predictor, task, opacity, source
        self.stills, self.folder = stills, folder  # what is written of each frame, and the name of its folder
        self.batch_size, self.max_frames = batch_size, max_frames
        self.size = (0, 0)
        self.pixels = np.zeros(len(predictor.classes), np.int64)
        self.count = 0  # frames that are written
        self._writer: _Writer | None = None

    def __call__(self, progress: Callable[[float], None], path: str | None) -> None:
        """Segment all frames, and write the overlays to a path."""
        total = min(self.source.total or self.max_frames or 0, self.max_frames or self.source.total)
        frames = map(self._prepare, islice(self.source.frames(), self.max_frames))
        read = _ahead(frames, 2 * self.batch_size)
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(1))
            stack.enter_context(closing(read))
            writes: deque[Future[None]] = deque()
            segmented = 0
            try:
                while batch := list(islice(read, self.batch_size)):
                    predictions = self.predictor.segment([prepared for _, prepared in batch])
                    writes.append(pool.submit(self._write, path, [frame for frame, _ in batch], predictions))
                    if len(writes) > 2:
                        writes.popleft().result()
                    segmented += len(batch)
                    progress(min(segmented / total, 1) if total else 0)
            except Stopped:
                if not self.source.live:
                    raise
            for write in writes:
                write.result()
            if self._writer is not None:
                self._writer.close(cut=self.count == self.max_frames)
        if not self.count:
            raise UserError(
                f'{self.task.source} has no frame that can be decoded; {self.source.fault or "it is empty"}'
            )

    def _prepare(self, frame: Frame) -> tuple[Frame, Prepared]:
        return frame, self.predictor.prepare(InputImage(frame.bgr, self.task.source))

    def _write(self, path: str | None, frames: list[Frame], predictions: list[Prediction]) -> None:
        for frame, prediction in zip(frames, predictions, strict=True):
            if path is not None:
                if self._writer is None:
                    self._writer = _Writer(path, self.source, self.task.source, frame)
                self._writer.write(prediction.overlay(self.opacity), frame)
            if self.stills is not None:
                self.stills.write(prediction, f'{self.folder}/{self.count:06}')
            self.size = frame.bgr.shape[:2]
            self.pixels += prediction.class_pixels
            self.count += 1


def _ahead(items: Iterator[T], count: int) -> Generator[T, None, None]:
    """Yield items that a thread fetches ahead of their use."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, items, None))
                yield item
        finally:
            for future in waiting:
                future.cancel()


def _open(task: Task) -> Any:
    """Return where the frames of a task come from."""
    if task.source.startswith(CAMERA):
        return _Camera(task.source)
    if task.kind == 'animation':
        return _Animation(task.source)
    return _VideoFile(task.source)


def _import_av() -> Any:
    try:
        import av
    except ImportError:
        raise MissingPackageError(
            "videos and animations need PyAV: run pip install 'mmseg_segmenter[video]' or pip install av"
        ) from None
    return av


def _open_container(source: str) -> Any:
    """Open a video with PyAV.

    Raises:
        MissingFileError: no such file.
        UserError: not a video.
    """
    av = _import_av()
    file: Any = os.path.expanduser(source)
    if is_uri(source) and not source.startswith(('http://', 'https://')):
        fs, path = file_system(source)
        file = fs.open(path, 'rb')
    try:
        return av.open(file)
    except FileNotFoundError:
        raise MissingFileError(f'{source} not found (working directory: {os.getcwd()})') from None
    except av.FFmpegError as error:
        raise UserError(f'{source} is not a readable video: {error.strerror}') from None


class _VideoFile:
    """Frames of a video file, decoded by FFmpeg."""

    live = False

    def __init__(self, source: str) -> None:
        av = _import_av()
        self._error: type[Exception] = av.FFmpegError
        self._container = _open_container(source)
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in self._container.streams.video if not stream.disposition & cover]
        if not streams:
            self._container.close()
            raise UserError(f'{source} has no video stream (format: {self._container.format.long_name})')
        self._stream = streams[0]
        unit, rate = self._stream.time_base, self._stream.average_rate or self._stream.guessed_rate or 25
        self.rate = Fraction(rate)
        # Matroska rounds times to milliseconds. The frames of a constant rate get their exact times back.
        self._constant = self._stream.base_rate == self._stream.average_rate
        exact = Fraction(1, math.lcm(unit.denominator, self.rate.numerator))
        self.time_base: Fraction = exact if self._constant and exact.denominator < _FINEST else unit
        self.total = self._stream.frames or int((self._container.duration or 0) * self.rate / av.time_base)
        self.sounds = tuple(stream.codec_context.codec.canonical_name for stream in self._container.streams.audio)
        self.aspect: Fraction | None = self._stream.sample_aspect_ratio
        self.fault = ''

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in the order in which they are shown.

        What cannot be decoded is left out, and ``fault`` says so.
        """
        start = start_of(self._container)
        size, last, packets, end = None, -1, 0, Fraction(0)
        for packet in self._packets():
            if packet.pts is not None and packet.duration:
                end = max(end, (packet.pts + packet.duration) * packet.time_base - start)
            if packet.stream is not self._stream:
                continue
            packets += packet.dts is not None
            try:
                decoded = packet.decode()
            except self._error as error:
                self._damaged(packets, str(error))
                continue
            for frame in decoded:
                if frame.is_corrupt:
                    self._damaged(packets, 'data is missing')
                bgr = np.rot90(frame.to_ndarray(format='bgr24'), frame.rotation // 90)
                if size not in (None, bgr.shape):
                    self.fault = f'the size changes from {size[:2]} to {bgr.shape[:2]}'
                    return
                if size is None and self.aspect and frame.rotation % 180:
                    self.aspect = 1 / self.aspect
                size = bgr.shape
                step = max(round(1 / self.rate / self.time_base), 1)
                pts = last + step if frame.pts is None else self._exact(frame.pts * frame.time_base - start)
                last = max(pts, last + 1)  # encoders expect rising times
                duration = step if self._constant else round((frame.duration or 0) * frame.time_base / self.time_base)
                colours = Colours(frame.colorspace, frame.color_primaries, frame.color_trc)
                yield Frame(np.ascontiguousarray(bgr), last, duration or step, colours if colours.space else None)
        self._check_end(packets, end)

    def _packets(self) -> Iterator[Any]:
        """Yield the packets of all streams; at the end an empty one, which flushes the decoder."""
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets, None)
            except self._error as error:
                self.fault = self.fault or f'it cannot be read to its end ({error})'
                return
            if packet is None:
                return
            yield packet

    def _exact(self, seconds: Fraction) -> int:
        if self._constant:
            nearest = round(seconds * self.rate) / self.rate
            if abs(nearest - seconds) <= self._stream.time_base / 2:
                seconds = nearest
        return round(seconds / self.time_base)

    def _damaged(self, packets: int, reason: str) -> None:
        self.fault = self.fault or f'damaged at frame {packets} ({reason})'

    def _check_end(self, packets: int, end: Fraction) -> None:
        """Notice that a file was cut off, where its header tells how long it was. Other formats only estimate that."""
        name, duration = self._container.format.name, Fraction(self._container.duration or 0, 1_000_000)
        if 'mp4' in name and packets < self._stream.frames:
            self.fault = self.fault or f'the file ends after {packets} of {self._stream.frames} frames'
        if 'matroska' in name and end < duration - 1:
            self.fault = self.fault or f'the file ends after {float(end):.1f} of {float(duration):.1f} seconds'

    def close(self) -> None:
        self._container.close()


def start_of(container: Any) -> Fraction:
    """Return when the first picture or sound of a file begins, in seconds."""
    streams = (*container.streams.video, *container.streams.audio)
    starts = [(stream.start_time or 0) * stream.time_base for stream in streams]
    return max(min(starts), Fraction(0))  # sound may begin before 0 with what its decoder needs to start


class _Animation:
    """Frames of an animated GIF, WebP or PNG, decoded by Pillow."""

    live, sounds, aspect = False, (), None
    time_base = Fraction(1, 1000)

    def __init__(self, source: str) -> None:
        self._source = source
        content = read_bytes(source)
        self.fault, self.total = '', 0
        with no_pillow_limit(), decoding(source, len(content)):
            self._image: Any = open_image(content)
        with contextlib.suppress(Exception), no_pillow_limit():
            self.total = getattr(self._image, 'n_frames', 1)
        self.rate = Fraction(1000, self._duration())

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; memory holds one of them."""
        pts = 0
        for i in itertools.count():
            try:
                with no_pillow_limit():
                    self._image.seek(i)
                    bgr = to_bgr(self._image)
            except EOFError:
                return
            except Exception as error:  # Pillow raises many kinds
                self.fault = f'damaged at frame {i + 1} ({error})'
                return
            yield Frame(bgr, pts, self._duration())
            pts += self._duration()

    def _duration(self) -> int:
        return max(round(self._image.info.get('duration') or _DEFAULT_DURATION), 1)

    def close(self) -> None:
        self._image.close()


class _Camera:
    """Frames of a camera or a network stream, with the times at which they come."""

    live, total, sounds, aspect = True, 0, (), None
    time_base = Fraction(1, 1000)

    def __init__(self, source: str) -> None:
        device = source.removeprefix(CAMERA)
        self._capture = cv2.VideoCapture(int(device) if device.isdigit() else device)
        if not self._capture.isOpened():
            raise MissingFileError(f'{source}: no such camera; expected camera:NUMBER or camera:URL')
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate if 1 <= rate <= 1000 else 30).limit_denominator(1001)
        self.fault = ''

    def frames(self) -> Iterator[Frame]:
        """Yield frames until the camera gives none."""
        start, last = time.monotonic(), -1
        for i in itertools.count():
            good, bgr = self._capture.read()
            if not good:
                self.fault = f'it gave no more pictures after {i}'
                return
            last = max(round((time.monotonic() - start) * 1000) if i else 0, last + 1)
            yield Frame(bgr, last, round(1000 / self.rate))

    def close(self) -> None:
        self._capture.release()


class _Writer:
    """Write overlays as a video, with the sound of the source.

    Args:
        path: file to write.
        source: where the frames come from.
        sound: path of the file whose sound is copied, if it has any.
        first: first frame, which tells the size.
    """

    def __init__(self, path: str, source: Any, sound: str, first: Frame) -> None:
        av = self._av = _import_av()
        self._container = av.open(path, 'w', options={'movflags': '+faststart'} if path.endswith('.mp4') else {})
        has_h264 = 'libx264' in av.codecs_available
        # Without B-frames the last frame is the last in the file, where MP4 keeps its duration.
        options = {'crf': '20', 'preset': 'veryfast', 'bf': '0'} if has_h264 else {'qmin': '2', 'qmax': '6'}
        self._video = self._container.add_stream('libx264' if has_h264 else 'mpeg4', rate=source.rate, options=options)
        height, width = first.bgr.shape[:2]
        self._video.height, self._video.width = height + height % 2, width + width % 2
        self._video.pix_fmt = 'yuv420p'
        context = self._video.codec_context
        if source.aspect:
            context.sample_aspect_ratio = source.aspect
        self._colours = first.colours
        if self._colours is not None:
            context.colorspace, context.color_primaries, context.color_trc = self._colours
        self._unit: Fraction = source.time_base
        if not has_h264 and self._unit.denominator > _MPEG4_FINEST:
            numerator = source.rate.numerator
            self._unit = Fraction(1, max(_MPEG4_FINEST // numerator, 1) * numerator)
        self._scale = source.time_base / self._unit
        self._video.time_base = context.time_base = self._unit
        self._durations: dict[int, int] = {}
        self._end = 0  # of the last frame
        self._sound = _Sound(sound, self._container, source) if source.sounds else None

    def write(self, rgb: np.ndarray, frame: Frame) -> None:
        """Encode one frame, and the sound up to its time.

        Args:
            rgb: (H, W, 3) uint8.
            frame: that it shows, for its times.
        """
        height, width = rgb.shape[:2]
        if height % 2 or width % 2:
            rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')
        picture = self._av.VideoFrame.from_ndarray(rgb, format='rgb24')
        if self._colours is not None:
            picture = picture.reformat(format='yuv420p', dst_colorspace=self._colours.space)
        picture.pts, picture.time_base = round(frame.pts * self._scale), self._unit
        self._durations[picture.pts] = duration = round(frame.duration * self._scale)
        self._end = picture.pts + duration
        self._mux(self._video.encode(picture))
        if self._sound is not None:
            self._sound.copy(until=picture.pts * self._unit)

    def close(self, cut: bool) -> None:
        """Finish the file.

        Args:
            cut: end the sound with the last frame.
        """
        self._mux(self._video.encode())
        if self._sound is not None:
            self._sound.copy(until=self._end * self._unit if cut else None)
        self._container.close()

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)


class _Sound:
    """Copy the sound of a video to another file without decoding it.

    Args:
        path: video with sound.
        target: PyAV container to write to.
        source: gets a fault if a sound cannot be copied.
    """

    def __init__(self, path: str, target: Any, source: Any) -> None:
        self._error = _import_av().FFmpegError
        self._container = _open_container(path)
        self._target, self._start = target, start_of(self._container)
        self._streams = {}
        for stream in self._container.streams.audio:
            try:
                self._streams[stream.index] = target.add_stream_from_template(stream)
            except ValueError as error:
                source.fault = source.fault or f'its sound cannot be kept ({error})'
        copied = [self._container.streams[i] for i in self._streams]
        self._packets = self._container.demux(*copied) if copied else iter(())
        self._waiting: Any = None
        self._fetch()

    def copy(self, until: Fraction | None) -> None:
        """Write the packets that begin before a time in seconds, or all."""
        while self._waiting is not None:
            packet = self._waiting
            if until is not None and packet.dts * packet.time_base - self._start >= until:
                return
            shift = round(self._start / packet.time_base)
            packet.dts -= shift
            packet.pts = packet.dts if packet.pts is None else packet.pts - shift
            packet.stream = self._streams[packet.stream.index]
            self._target.mux(packet)
            self._fetch()
        self._container.close()

    def _fetch(self) -> None:
        """Take the next packet, and skip those without data."""
        try:
            self._waiting = next((packet for packet in self._packets if packet.size and packet.dts is not None), None)
        except self._error:  # the frames are read from the same file, which reports it
            self._waiting = None
