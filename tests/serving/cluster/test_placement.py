"""Where sessions go, and how many hosts there should be."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive_trt.serving.cluster.on_ray.scaling import RUNNING, SLOTS, WAITING, FreeSlots
from longlive_trt.serving.cluster.placement import (
    HostView,
    Placement,
    Scaling,
    facts_of,
    view_from,
)


def placement(*views: HostView) -> Placement:
    one = Placement(draw=lambda: 0.5)
    for view in views:
        one.hear(view)
    return one


@given(hosts=st.integers(1, 8), slots=st.integers(1, 4), asked=st.integers(0, 40))
def test_sessions_spread_evenly_and_never_overflow(hosts: int, slots: int, asked: int) -> None:
    one = placement(*(HostView(f"h{number}", slots, 0) for number in range(hosts)))
    taken: Counter[str] = Counter()
    for _ in range(asked):
        host = one.best()
        if host is None:
            break
        one.sent(host)
        taken[host] += 1
    assert taken.total() == min(asked, hosts * slots)
    counts = [taken[f"h{number}"] for number in range(hosts)]
    assert max(counts) - min(counts) <= 1


def test_many_gateways_do_not_all_choose_one() -> None:
    """A hundred of them place one session each by the same view, in which one host is empty."""
    random.seed(3)
    views = [HostView(f"h{number}", 4, 3) for number in range(1000)]
    chosen = Counter[str | None]()
    for _ in range(100):
        one = Placement()
        for view in (*views, HostView("empty", 4, 0)):
            one.hear(view)
        chosen[one.best()] += 1
    assert None not in chosen and max(chosen.values()) < 5


def test_a_draining_host_gets_nobody() -> None:
    one = placement(HostView("a", 4, 0, is_draining=True), HostView("b", 2, 1))
    assert one.best() == "b" and one.free == 1
    one.hear(HostView("b", 2, 2, version=1))
    assert one.best() is None


def test_a_session_goes_where_its_bundle_is() -> None:
    one = placement(
        HostView("a", 4, 0, bundle_key="new"),
        HostView("b", 4, 3, bundle_key="old"),
        HostView("c", 4, 2, bundle_key="old"),
    )
    assert one.best() == one.best("new") == "a" and one.best("old") == "c"
    one.hear(HostView("c", 4, 4, bundle_key="old", version=1))
    one.hear(HostView("b", 4, 4, bundle_key="old", version=1))
    # It waits; one whose bundle nobody has is told so by whoever it gets to.
    assert one.best("old") is None and one.best("older") == "a"
    one.keep_only(["a"])
    assert one.best("old") == "a"


def test_what_was_said_later_counts() -> None:
    one = placement(HostView("a", 2, 2, version=7))
    one.hear(HostView("a", 2, 0, version=6))
    assert one.best() is None


def test_answers_free_what_was_on_its_way() -> None:
    one = placement(HostView("a", 1, 0))
    one.sent("a")
    assert one.best() is None
    one.answered("a")
    assert one.best() == "a"


def test_hosts_that_are_gone_are_forgotten() -> None:
    one = placement(HostView("a", 1, 0), HostView("b", 1, 0))
    one.own("session", "a")
    one.keep_only(["b"])
    assert [view.name for view in one.hosts] == ["b"]
    # Whose it was is still known: whoever asks finds that it does not run.
    assert one.owner("session") == "a"


def test_a_view_survives_its_way() -> None:
    view = HostView("a", 3, 1, True, "key", "10.0.0.1:77", 9, (("saves", 2.0),))
    assert view_from(facts_of(view)) == view
    assert view_from({}) is None


@pytest.mark.parametrize(
    ("hosts", "running", "waiting", "wanted"),
    [
        (4, 0, 0, 2),  # nobody: the least
        (4, 4, 0, 3),  # half free: one can go
        (4, 5, 0, 4),  # enough is free, and not too much
        (4, 7, 0, 5),  # less than a fifth is free
        (4, 8, 6, 9),  # waiting counts
        (4, 8, 90, 10),  # the most
    ],
)
def test_hosts_follow_free_slots(hosts: int, running: int, waiting: int, wanted: int) -> None:
    scaling = Scaling(least=2, most=10)
    assert scaling.wanted(hosts, hosts * 2, running, waiting) == wanted


@given(
    hosts=st.integers(1, 200), slots=st.integers(1, 4), running=st.integers(0, 800),
    waiting=st.integers(0, 50),
)  # fmt: skip
def test_scaling_settles(hosts: int, slots: int, running: int, waiting: int) -> None:
    """What it wants it still wants once it has it."""
    running = min(running, hosts * slots)
    scaling = Scaling(least=1, most=1000)
    wanted = scaling.wanted(hosts, hosts * slots, running, waiting)
    again = scaling.wanted(wanted, wanted * slots, running + waiting, 0)
    assert again == wanted
    assert wanted * slots >= running + waiting


class Context:
    """Of a call to an autoscaling policy, as far as ours reads it."""

    def __init__(self, figures: dict[str, dict[str, float]] | None, target: int = 3) -> None:
        self.aggregated_metrics, self.target_num_replicas = figures, target


def test_rays_policy_counts_slots() -> None:
    policy = FreeSlots(least=1, most=10, spare=0.2, shrink_at=0.4)
    full = {SLOTS: {"a": 2.0, "b": 2.0}, RUNNING: {"a": 2.0, "b": 2.0}, WAITING: {"a": 0.0}}
    assert policy(Context(full)) == (3, {})
    # Hosts that have not said anything yet are no reason to end them.
    assert policy(Context(None)) == (3, {}) and policy(Context({})) == (3, {})
