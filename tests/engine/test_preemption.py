import os
import signal
import time

import pytest

from mmseg_segmenter.engine.preemption import StopSignals


@pytest.fixture
def signals():
    # ignored if the tests run in the background or with nohup
    numbers = (signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    found = StopSignals()
    found.install()
    yield found
    found.restore()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_signals_are_noted(signals, capfd, number):
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # a launcher may repeat it
    assert signals.received == number.name
    assert capfd.readouterr().err.count(f'{number.name}: saving after this iteration') == 1


def test_second_interrupt_stops_at_once(signals, monkeypatch):
    os.kill(os.getpid(), signal.SIGINT)
    now = time.monotonic()
    monkeypatch.setattr(time, 'monotonic', lambda: now + 2)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_given_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    signals = StopSignals()
    signals.install()
    assert all(signal.getsignal(number) != handler for number, handler in before.items())
    signals.restore()
    assert {number: signal.getsignal(number) for number in before} == before


def test_ignored_signals_stay_ignored():
    """As with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = StopSignals()
    signals.install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.received is None
    signals.restore()
    signal.signal(signal.SIGHUP, before)
