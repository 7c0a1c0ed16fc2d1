from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from wrinklefree.tracking.signals import STOPPING, held_signals


class Stopped(BaseException):
    pass


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Both signals raise ``Stopped`` with their number."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    before = {one: signal.signal(one, stop) for one in STOPPING}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("first", STOPPING)
def test_what_a_signal_does_is_done_when_the_block_has_ended(first: signal.Signals):
    reached = []
    with pytest.raises(Stopped) as stopped, held_signals() as held:
        assert held.received is None
        signal.raise_signal(first)
        for one in STOPPING:
            signal.raise_signal(one)
        reached.append(held.received)
    assert reached == [first]
    assert stopped.value.args == (first,)


def test_afterwards_signals_act_at_once_again():
    with held_signals():
        pass
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)


def test_an_error_of_the_block_is_not_hidden_by_a_signal():
    with pytest.raises(ZeroDivisionError), held_signals():
        signal.raise_signal(signal.SIGTERM)
        raise ZeroDivisionError
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_was_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_signals() as held:
        signal.raise_signal(signal.SIGINT)
        assert held.received is None
