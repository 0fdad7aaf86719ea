"""The states of a supervised process and the back-off between its starts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.transitions import IllegalTransition
from services.launcher.lifecycle import TRANSITIONS, Deaths, Event, RestartPolicy, State, advance


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_only_edges_of_the_table_exist(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert advance(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransition):
            advance(state, event)


def test_everything_can_be_stopped() -> None:
    assert all(advance(state, Event.STOP) is State.STOPPED for state in State)


def test_every_state_is_reachable() -> None:
    reached = {State.STOPPED}
    for _ in State:
        reached |= {target for (source, _event), target in TRANSITIONS.items() if source in reached}
    assert reached == set(State)


def test_back_off_doubles_to_its_limit() -> None:
    deaths = Deaths(RestartPolicy(limit=8))
    delays = [deaths.record(float(now), was_healthy=True) for now in range(8)]
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, None])


def test_old_deaths_are_forgiven() -> None:
    deaths = Deaths()
    assert all(deaths.record(now * 200.0, was_healthy=True) == 0.2 for now in range(50))


def test_what_never_answered_is_given_up_sooner() -> None:
    deaths = Deaths()
    assert deaths.record(0.0, was_healthy=False) == 0.2
    assert deaths.record(0.5, was_healthy=False) is None


@given(st.lists(st.floats(0, 1000), max_size=60))
def test_given_up_exactly_at_the_limit_within_the_window(gaps: list[float]) -> None:
    policy, now, times = RestartPolicy(), 0.0, list[float]()
    deaths = Deaths(policy)
    for gap in gaps:
        now += gap
        times.append(now)
        recent = [time for time in times if time >= now - policy.window_s]
        delay = deaths.record(now, was_healthy=True)
        assert (delay is None) == (len(recent) >= policy.limit)
        assert delay is None or policy.first_delay_s <= delay <= policy.max_delay_s
