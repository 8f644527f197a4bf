"""Whose turn it is: order, caps, pauses, and hosts that keep failing; by a clock that the test moves."""

from __future__ import annotations

from edkit.gather.turns import Turns


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def turns(clock: Clock, **options: object) -> Turns[int]:
    settings: dict[str, object] = {"at_once": 10, "per_host": 2, "fails_in_a_row": 3, "rests": (2.0, 8.0)}
    return Turns(**{**settings, **options}, clock=clock)  # type: ignore[arg-type]


def taken(some: Turns[int]) -> list[int]:
    found = []
    while (turn := some.take()) is not None:
        found.append(turn[1])
    return found


def test_the_lowest_ticket_goes_first_as_far_as_hosts_and_the_total_leave_room() -> None:
    some = turns(Clock(), at_once=3)
    for ticket, host in enumerate("aaabbc"):
        some.add(host, ticket, ticket)
    assert taken(some) == [0, 1, 3]
    some.free("a")
    assert taken(some) == [2]
    some.free("b")
    assert taken(some) == [4]


def test_a_wary_host_gets_one_until_it_is_trusted() -> None:
    some = turns(Clock(), wary=True)
    for ticket in range(4):
        some.add("a", ticket, ticket)
    assert taken(some) == [0]
    assert some.trust("a")
    assert taken(some) == [1]
    assert not some.trust("a")  # there is nothing new to take


def test_a_pause_delays_its_own_host_only_and_a_long_one_is_left_to_the_next_run() -> None:
    clock = Clock()
    some = turns(clock, per_host=1)
    for ticket, host in enumerate("aab"):
        some.add(host, ticket, ticket)
    assert taken(some) == [0, 2]
    some.pause("a", 5)
    some.free("a")
    assert taken(some) == [] and 4.9 < (some.next_wake() or 0) <= 5
    clock.now += 5.1
    assert taken(some) == [1]
    some.add("a", 9, 9)
    some.pause("a", 3600)
    some.free("a")
    assert taken(some) == [] and [(i, code) for i, code, _ in some.dropped] == [(9, "host-paused")]


def test_a_crawl_delay_spaces_the_requests() -> None:
    clock = Clock()
    some = turns(clock)
    for ticket in range(3):
        some.add("a", ticket, ticket)
    assert some.take() == ("a", 0)
    some.space("a", 2)
    some.free("a")
    starts = []
    for _ in range(60):
        starts += [round(clock.now - 1000, 1) for _ in taken(some)]
        clock.now += 0.1
    assert len(starts) == 2 and starts[0] >= 2 and starts[1] - starts[0] >= 2


def fail_once(some: Turns[int], clock: Clock) -> int:
    turn = some.take()
    assert turn is not None
    some.failed("a", "timeout", started=clock.now)
    some.free("a")
    return turn[1]


def test_a_host_that_keeps_failing_rests_longer_and_longer_and_is_given_up() -> None:
    clock = Clock()
    some = turns(clock)
    for ticket in range(-1, 20):
        some.add("a", ticket, ticket)
    assert some.take() == ("a", -1)
    some.answered("a")
    some.free("a")
    for _ in range(3):
        fail_once(some, clock)
    assert taken(some) == [] and 1.7 < (some.next_wake() or 0) < 2.3
    clock.now += 2.5
    fail_once(some, clock)  # one probe
    assert taken(some) == [] and 7 < (some.next_wake() or 0) < 9
    clock.now += 9
    fail_once(some, clock)
    assert [(item, code) for item, code, _ in some.dropped] == [(i, "host-failing") for i in range(5, 20)]
    assert "timeout" in some.dropped[0][2]
    some.dropped.clear()
    some.add("a", 30, 30)  # nor is it asked in the next minute
    assert taken(some) == [] and [item for item, _, _ in some.dropped] == [30]
    some.dropped.clear()
    clock.now += 61
    some.add("a", 31, 31)
    assert taken(some) == [31]


def test_a_host_that_never_answered_rests_once() -> None:
    clock = Clock()
    some = turns(clock)
    for ticket in range(20):
        some.add("a", ticket, ticket)
    for _ in range(3):
        fail_once(some, clock)
    clock.now += 2.5
    fail_once(some, clock)
    assert [(item, code) for item, code, _ in some.dropped] == [(i, "host-failing") for i in range(4, 20)]


def test_a_host_that_answers_its_probe_is_as_good_as_any_other() -> None:
    clock = Clock()
    some = turns(clock)
    for ticket in range(8):
        some.add("a", ticket, ticket)
    for _ in range(3):
        fail_once(some, clock)
    clock.now += 3
    assert taken(some) == [3]
    some.answered("a")
    some.free("a")
    assert taken(some) == [4, 5]


def test_what_was_on_its_way_when_a_host_was_left_alone_says_nothing_new() -> None:
    clock = Clock()
    some = turns(clock, per_host=8)
    for ticket in range(10):
        some.add("a", ticket, ticket)
    began = clock.now
    assert len(taken(some)) == 8
    clock.now += 10
    for _ in range(8):
        some.failed("a", "timeout", started=began)
        some.free("a")
    assert taken(some) == [] and not some.dropped and 1.7 < (some.next_wake() or 0) < 2.3


def test_hosts_that_are_done_are_forgotten() -> None:
    some = turns(Clock())
    for ticket in range(1000):
        some.add(f"host{ticket}", ticket, ticket)
        some.take()
        some.free(f"host{ticket}")
    assert not some._hosts
