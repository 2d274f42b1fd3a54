"""The loop on toy actors: order, virtual time, deaths, stalls, timers, and the same run twice."""

import time

import pytest

from holdfast.claim import ClaimKey, Direction
from holdfast.errors import HoldfastError, ProtocolError, WorkerDied, WorkerStalled
from holdfast.event import Banned
from holdfast.launch import Deadlock, Hooks, InProcess, Timing
from holdfast.message import Envelope, Seal, Work
from holdfast.transport import Cluster, Link, MemoryTransport

KEY = ClaimKey(0, 0, Direction.FORWARD, 1, 0)
LINK = Link(1.0, float("inf"))


class Toy:
    """Works on each number it gets, for `cost` each, and passes it on; writes down everything with its time."""

    def __init__(self, name, to=(), cost=1.0, devices=1, log=None):
        self.name, self.to, self.cost, self.devices = name, to, cost, devices
        self.log = [] if log is None else log
        self.todo = []
        self.clock = lambda: None
        self.on_receive = self.on_execute = lambda version: None

    def note(self, what, version):
        self.log.append((self.clock(), self.name, what, version))

    def receive(self, envelope):
        version = envelope.message.version
        self.note("got", version)
        self.todo.append(version)
        self.on_receive(version)
        return []

    def next_work(self, device):
        mine = [v for v in self.todo if v % self.devices == device]
        return Work(f"step{mine[0]}", device, 1, KEY, None, self.cost) if mine else None

    def execute(self, work):
        version = int(work.kind[4:])
        self.todo.remove(version)
        self.note("did", version)
        self.on_execute(version)
        return self.messages(version)

    def messages(self, version):
        return [Envelope(self.name, to, Seal(version)) for to in self.to]


def start(actors, cluster=None, timing=None, hooks=None):
    network = MemoryTransport(cluster or Cluster(LINK), wire_check=True)
    loop = InProcess(actors, network, timing or Timing(seconds_per_forward=1.0, detection_s=0.5), hooks or Hooks())
    for actor in actors:
        actor.clock = lambda: loop.now
    return loop


def seal(to, version=0, sender="out"):
    return Envelope(sender, to, Seal(version))


def until_quiet(loop):
    with pytest.raises(Deadlock):
        loop.run_until(lambda: False)


def test_work_is_done_when_it_starts_and_told_when_it_ends():
    a, b = Toy("a", ["b"], cost=2.0), Toy("b")
    b.log = a.log
    loop = start([a, b])
    loop.inject([seal("a", 5)])
    loop.run_until(lambda: bool(b.todo))
    assert a.log == [(1.0, "a", "got", 5), (1.0, "a", "did", 5), (4.0, "b", "got", 5)]
    assert loop.now == 4.0
    assert loop.busy_s == {("a", 0): 2.0}


def test_a_device_does_one_thing_at_a_time_and_two_devices_two():
    for devices, ends in ((1, 3.0), (2, 2.0)):
        a = Toy("a", ["b"], devices=devices)
        loop = start([a, b := Toy("b")])
        loop.inject([seal("a", 0), seal("a", 1)])
        until_quiet(loop)
        assert [time for time, _, what, _ in b.log if what == "got"] == [3.0, ends + 1.0]
        assert sum(loop.busy_s[place] for place in loop.busy_s if place[0] == "a") == 2.0


def test_speeds_divide_the_time_of_one_device():
    a = Toy("a", ["b"], cost=3.0, devices=2)
    loop = start([a, b := Toy("b")], timing=Timing(2.0, {("a", 1): 4.0}))
    loop.inject([seal("a", 0), seal("a", 1)])
    until_quiet(loop)
    assert [(time, v) for time, _, what, v in b.log if what == "got"] == [(1 + 1.5 + 1, 1), (1 + 6 + 1, 0)]


def test_work_is_asked_for_after_everything_of_the_same_moment_has_arrived():
    asked = []

    class Choosy(Toy):
        def next_work(self, device):
            asked.append(list(self.todo))
            return super().next_work(device)

    loop = start([Choosy("a")])
    loop.inject([seal("a", 1), seal("a", 2), seal("a", 3)])
    until_quiet(loop)
    assert [1, 2, 3] in asked
    assert [1] not in asked


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        log = []
        actors = [
            Toy("a", ["b", "c"], log=log),
            Toy("b", ["c"], 0.3, log=log),
            Toy("c", ["d"], 0.1, 2, log=log),
            Toy("d", log=log),
        ]
        loop = start(actors, Cluster(Link(0.01, 1e3), jitter_s=3.0, loss=0.1, seed=seed))
        loop.inject([seal("a", v) for v in range(10)])
        until_quiet(loop)
        return log

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_wall_time_is_counted_by_kind_of_work():
    began = time.perf_counter()
    loop = start([Toy("a")])
    loop.inject([seal("a", 7)])
    until_quiet(loop)
    assert list(loop.seconds_by_kind) == ["step7"]
    assert 0 < loop.seconds_by_kind["step7"] < time.perf_counter() - began


# -- death -----------------------------------------------------------------------------------------------------------


def dying(sent):
    def die(_version):
        raise WorkerDied(sent)

    return die


def losses():
    lost = []

    def on_lost(name, reason):
        lost.append((name, reason))
        return [Envelope("coordinator", "b", Seal(99))]

    return lost, Hooks(on_lost=on_lost)


def test_a_death_in_work_lets_out_what_was_sent_and_is_noticed_later():
    lost, hooks = losses()
    a, b = Toy("a", ["b"], cost=2.0), Toy("b")
    a.on_execute = dying([Envelope("a", "b", Seal(1))])
    loop = start([a, b], hooks=hooks)
    loop.inject([seal("a", 1), seal("a", 2)])
    loop.run_until(lambda: bool(lost))
    assert loop.now == 1.0 + 2.0 + 0.5
    until_quiet(loop)
    assert [(time, v) for time, _, what, v in b.log if what == "got"] == [(4.0, 1), (4.5, 99)]
    assert [v for _, _, what, v in a.log if what == "did"] == [1]
    assert lost == [("a", "the worker died after 1 envelopes")]


def test_a_death_while_receiving_ends_the_work_in_flight_too():
    lost, hooks = losses()
    a, b = Toy("a", ["b"], cost=10.0), Toy("b")
    a.on_receive = lambda version: dying([])(version) if version == 2 else None
    loop = start([a, b], Cluster(LINK, {("late", "a"): Link(3.0, float("inf"))}), hooks=hooks)
    loop.inject([seal("a", 1), seal("a", 2, "late"), seal("a", 3, "late")])
    until_quiet(loop)
    assert [v for _, _, what, v in a.log if what == "got"] == [1, 2]
    assert [v for _, _, what, v in b.log if what == "got"] == [99]
    assert [name for name, _ in lost] == ["a"]


def test_who_dies_in_work_gets_nothing_from_its_start_on():
    a = Toy("a", cost=10.0)
    a.on_execute = dying([])
    loop = start([a], Cluster(LINK, {("late", "a"): Link(3.0, float("inf"))}))
    loop.inject([seal("a", 1), seal("a", 2, "late")])
    until_quiet(loop)
    assert [v for _, _, what, v in a.log if what == "got"] == [1]


def test_killed_from_outside_once():
    lost, hooks = losses()
    a, b = Toy("a", ["b"], cost=10.0), Toy("b")
    loop = start([a, b], hooks=hooks)
    loop.inject([seal("a", 1)])
    loop.run_until(lambda: not a.todo and bool(a.log))
    loop.kill("a")
    loop.kill("a")
    until_quiet(loop)
    assert [v for _, _, what, v in b.log if what == "got"] == [99]
    assert lost == [("a", "killed")]


# -- stalls ----------------------------------------------------------------------------------------------------------


def once(error):
    def strike(_version):
        errors, strike.left = strike.left, []
        for each in errors:
            raise each

    strike.left = [error]
    return strike


def test_a_stall_holds_deliveries_back_and_processes_them_in_order():
    a, b = Toy("a", ["b"]), Toy("b")
    a.on_receive = once(WorkerStalled(10.0, [Envelope("a", "b", Seal(50))]))
    loop = start([a, b])
    loop.inject([seal("a", v) for v in (1, 2, 3)])
    until_quiet(loop)
    assert [(time, v) for time, _, what, v in a.log if what == "got"] == [(1.0, 1), (11.0, 2), (11.0, 3)]
    assert [(time, v) for time, _, what, v in a.log if what == "did"] == [(11.0, 1), (12.0, 2), (13.0, 3)]
    assert next((time, v) for time, _, _, v in b.log) == (2.0, 50)


def test_a_stall_in_work_starts_when_the_work_ends_and_holds_other_devices_too():
    a, b = Toy("a", ["b"], cost=2.0, devices=2), Toy("b")
    a.on_execute = lambda version: once(WorkerStalled(5.0))(version) if version == 0 else None
    loop = start([a, b])
    loop.inject([seal("a", 0), seal("a", 1)])
    until_quiet(loop)
    assert [(time, v) for time, _, what, v in b.log if what == "got"] == [(1 + 2 + 5 + 1, 1)]


def test_two_stalls_in_a_row_keep_the_order():
    a = Toy("a")
    a.on_receive = lambda version: once(WorkerStalled(3.0))(version) if version < 3 else None
    loop = start([a])
    loop.inject([seal("a", v) for v in (1, 2, 3, 4)])
    until_quiet(loop)
    assert [(time, v) for time, _, what, v in a.log if what == "got"] == [(1.0, 1), (4.0, 2), (7.0, 3), (7.0, 4)]


def test_a_stalled_worker_can_be_killed():
    lost, hooks = losses()
    a, calls = Toy("a", ["b"]), []
    a.on_receive = once(WorkerStalled(10.0))
    a.pending_events = lambda: calls.append("asked") or ()
    loop = start([a, Toy("b")], hooks=hooks)
    loop.inject([seal("a", 1), seal("a", 2)])
    loop.run_until(lambda: bool(a.log))
    loop.kill("a")
    calls.clear()
    until_quiet(loop)
    assert len(a.log) == 1
    assert calls == []
    assert [name for name, _ in lost] == ["a"]


# -- timers, events, errors ------------------------------------------------------------------------------------------


class Clockwork(Toy):
    """Sets a timer for every number; on its ring emits an event and sends the number on."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.timers, self.events = [("first", 2.5)], []

    def receive(self, envelope):
        self.timers.append((envelope.message.version, 4.0))
        return []

    def on_timer(self, token):
        self.note("rang", token)
        self.events.append(Banned(self.name, 0, 0))
        return self.messages(7)

    def pending_timers(self):
        timers, self.timers = self.timers, []
        return timers

    def pending_events(self):
        events, self.events = self.events, []
        return events


def test_timers_ring_and_events_come_out_with_their_time():
    seen = []
    a, b = Clockwork("a", ["b"]), Toy("b")
    loop = start([a, b], hooks=Hooks(observe=lambda event, now_s: seen.append((event, now_s))))
    loop.inject([seal("a", 3)])
    until_quiet(loop)
    assert a.log == [(2.5, "a", "rang", "first"), (5.0, "a", "rang", 3)]
    assert seen == [(Banned("a", 0, 0), 2.5), (Banned("a", 0, 0), 5.0)]
    assert [(time, v) for time, _, what, v in b.log if what == "got"] == [(3.5, 7), (6.0, 7)]


def test_what_on_lost_makes_an_actor_want_is_looked_at():
    seen = []
    a, c = Toy("a"), Clockwork("c")
    c.timers = []

    def on_lost(name, _reason):
        c.events.append(Banned(name, 1, 1))
        c.todo.append(8)
        return []

    loop = start([a, c], hooks=Hooks(observe=lambda event, now_s: seen.append((event.worker, now_s)), on_lost=on_lost))
    loop.kill("a")
    until_quiet(loop)
    assert seen == [("a", 0.5)]
    assert c.log == [(0.5, "c", "did", 8)]


def test_a_deadlock_says_who_waits_for_what():
    a = Toy("a")
    a.describe = lambda: "a: wants a_1 of micro-batch 3"
    loop = start([a, Toy("b"), Toy("c")])
    loop.kill("b")
    with pytest.raises(Deadlock) as caught:
        loop.run_until(lambda: False)
    text = str(caught.value)
    assert "virtual second 0.5" in text
    assert "a: wants a_1 of micro-batch 3" in text
    assert "b: dead" in text
    assert "c: waits" in text
    assert isinstance(caught.value, HoldfastError)


def test_running_goes_on_where_it_stopped():
    a = Toy("a")
    loop = start([a])
    loop.inject([seal("a", v) for v in range(3)])
    for count in (1, 2, 3):
        loop.run_until(lambda count=count: len(a.log) >= count)
        assert len(a.log) == count
    loop.run_until(lambda: True)


def test_nobody_speaks_for_another_or_to_nobody():
    for wrong in (Envelope("b", "a", Seal(1)), Envelope("a", "nobody", Seal(1))):
        a = Toy("a")
        a.messages = lambda _version, wrong=wrong: [wrong]
        loop = start([a, Toy("b")])
        loop.inject([seal("a", 1)])
        with pytest.raises(ProtocolError):
            loop.run_until(lambda: False)
    with pytest.raises(ProtocolError, match="'nobody'"):
        loop.inject([seal("nobody")])


def test_a_refused_message_goes_up_or_to_the_hook():
    def refuse(_version):
        raise ProtocolError("no")

    a = Toy("a")
    a.on_receive = refuse
    loop = start([a])
    loop.inject([seal("a", 1)])
    with pytest.raises(ProtocolError, match="no"):
        loop.run_until(lambda: False)
    refused = []
    b = Toy("b")
    a = Toy("a")
    a.on_receive = refuse
    loop = start(
        [a, b], hooks=Hooks(on_refused=lambda envelope, error: refused.append((envelope, str(error))) or [seal("b", 5)])
    )
    loop.inject([seal("a", 1)])
    until_quiet(loop)
    assert refused == [(seal("a", 1), "no")]
    assert [v for _, _, what, v in b.log if what == "got"] == [5]
