"""Signals are handled while a run trains, and only then."""

import os
import signal

import pytest
from ftrain_cli.signals import WATCHED, watched

from ftrain.errors import Interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_stops_a_run_and_interrupts_loading(number, code):
    before = {each: signal.getsignal(each) for each in WATCHED}
    with watched() as stop:
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), number)
        assert caught.value.signal == number
        assert not stop()
        stop.waits = stop.announced = True
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.code == code
    assert {each: signal.getsignal(each) for each in WATCHED} == before


def test_a_signal_that_is_ignored_stays_ignored():
    """`nohup ftrain fit` trains on when the terminal closes."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watched() as stop:
            stop.waits = True
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
