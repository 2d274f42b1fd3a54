"""What a station was told before its host went is heard, whichever of its two threads is quicker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

import pytest

from holdfast.errors import NetworkError
from holdfast.message import Dismiss, Envelope, Present
from holdfast.stage import COORDINATOR
from holdfast.station import Part, Station
from holdfast.transport import Endpoint, Notice, Traffic

ORDER = Envelope(COORDINATOR, "w1", Dismiss("the run is over"))


class Line:
    """A link over which the host says `letters` and goes. What is called `at` the first `receive` comes before any of them.

    `news` is what it is told of the host, one list a time.
    """

    def __init__(self, *letters: Envelope, at: Callable[[], None] = lambda: None) -> None:
        self.generation = 0
        self.traffic = Traffic()
        self.letters = list(letters)
        self.news = [[Notice("host", "lost", "it said goodbye", 0.0)]]
        self.receives = 0
        self._at = at

    def send(self, envelope: Envelope) -> None:
        assert isinstance(envelope.message, Present)

    def receive(self, timeout_s: float) -> Envelope | None:
        self.receives += 1
        if self.receives == 1:
            self._at()
            return None  # just before the letters came
        return self.letters.pop(0) if self.letters else None

    def know(self, endpoints: Iterable[Endpoint]) -> None:
        raise AssertionError("nobody was told of")

    def notices(self) -> Sequence[Notice]:
        return self.news.pop(0) if self.news else []


def station(line: Line, after_turn: Callable[[], None] = lambda: None) -> Station:
    return Station(Part("w1", Present(None, "cpu", "native"), after_turn=after_turn), line)


@pytest.mark.timeout(60)
def test_a_dismissal_that_came_with_the_goodbye_is_heard() -> None:
    """The reader has just found nothing when both come."""
    assert station(Line(ORDER)).run() == "dismissed: the run is over"


@pytest.mark.timeout(60)
def test_a_dismissal_that_came_while_it_computed_is_heard() -> None:
    """The reader has read it, and that the host is gone, before the other thread is done with its turn."""
    computes, before = threading.Event(), set(threading.enumerate())
    line = Line(ORDER, at=computes.wait)

    def read_all() -> None:
        computes.set()
        for reader in set(threading.enumerate()) - before:
            reader.join()

    assert station(line, read_all).run() == "dismissed: the run is over"


@pytest.mark.timeout(60)
def test_without_a_word_the_host_cannot_be_reached() -> None:
    with pytest.raises(NetworkError, match="cannot be reached: it said goodbye"):
        station(Line()).run()


@pytest.mark.timeout(60)
def test_who_is_refused_and_then_let_in_goes_on() -> None:
    """It was quicker than the host's address book."""
    line = Line(ORDER)
    line.letters.insert(0, None)  # type: ignore[arg-type]  # a turn in which nothing comes
    line.news = [[Notice("host", "refused", "a stranger", 0.0)], [Notice("host", "up", "direct", 0.0)]]
    assert station(line).run() == "dismissed: the run is over"


@pytest.mark.timeout(60)
def test_a_host_that_started_anew_behind_its_wire_is_another_one() -> None:
    """It knows nothing of this station, which has to come to it as any other does."""
    line = Line()
    line.news = [
        [Notice("host", "up", "direct", 0.0)],
        [Notice("host", "lost", "it started anew", 0.0), Notice("host", "up", "direct", 0.0)],
    ]
    with pytest.raises(NetworkError, match="cannot be reached: it started anew"):
        station(line).run()


@pytest.mark.timeout(60)
def test_a_host_that_went_after_it_had_let_a_machine_in_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ever comes, and no notice, for there was no link that could be lost."""
    monkeypatch.setattr("holdfast.station.CONNECT_S", 0.1)
    line = Line()
    line.news = []
    with pytest.raises(NetworkError, match=r"cannot be reached: its wire did not answer within 0\.1 s"):
        station(line).run()
