"""The assignment of jobs to workers: rules that hold for any queue and any workers, and a simulated day."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice.flux_core.server.assign import PATIENCE, Assignment, Group, Models, Place, assign, next_look

NOW = 1000.0
models = st.frozensets(st.sampled_from("abc"), max_size=2)


@st.composite
def queues(draw: st.DrawFn) -> list[Group]:
    found = []
    for number, needed in enumerate(draw(st.lists(models, max_size=5, unique=True))):
        count = draw(st.integers(1, 6))
        first = [f"{number}.{i}" for i in range(min(count, 4))]
        since = NOW - draw(st.sampled_from([0.0, 1.0, PATIENCE, 50.0, 500.0]))
        place = draw(st.sampled_from([-1.0, 1.0])) * (number + 1)
        found.append(Group(needed, first, count, place, since, draw(st.sampled_from([1.0, 20.0]))))
    return found


workers = st.builds(
    lambda drawn: [Place(f"w{i}", free, warm, changed) for i, (free, warm, changed) in enumerate(drawn)],
    st.lists(st.tuples(st.booleans(), models, st.sampled_from([float("-inf"), NOW - 10.0, NOW - 500.0])), max_size=5),
)


@given(queues(), workers)
def test_every_job_and_every_worker_is_given_once_and_only_free_ones(groups: list[Group], places: list[Place]) -> None:
    made = assign(groups, places, NOW)
    free = {place.name for place in places if place.free}
    known = {prompt_id for group in groups for prompt_id in group.first}
    assert len({one.place for one in made}) == len(made) == len({one.prompt_id for one in made})
    assert {one.place for one in made} <= free and {one.prompt_id for one in made} <= known


@given(queues(), workers)
def test_jobs_of_the_same_models_start_in_order(groups: list[Group], places: list[Place]) -> None:
    started = [one.prompt_id for one in assign(groups, places, NOW)]
    for group in groups:
        mine = [prompt_id for prompt_id in started if prompt_id in group.first]
        assert mine == list(group.first[: len(mine)])


@given(queues(), workers)
def test_a_cold_start_is_said_and_never_made_where_a_free_worker_is_warm(
    groups: list[Group], places: list[Place]
) -> None:
    warm = {place.name: place.warm for place in places}
    needed = {prompt_id: group.models for group in groups for prompt_id in group.first}
    made = assign(groups, places, NOW)
    assert all(one.cold == (not needed[one.prompt_id] <= warm[one.place]) for one in made)
    idle = [place for place in places if place.free and place.name not in {one.place for one in made}]
    assert not any(one.cold and needed[one.prompt_id] <= place.warm for one in made for place in idle)


@given(queues(), workers)
def test_nobody_is_idle_while_a_job_has_waited_long_enough(groups: list[Group], places: list[Place]) -> None:
    made = assign(groups, places, NOW)
    given_ids = {one.prompt_id for one in made}
    left = [group for group in groups if not set(group.first) <= given_ids]
    idle = sum(place.free for place in places) - len(made)
    assert not idle or all(NOW - group.since < PATIENCE for group in left)
    assert not idle or not left or next_look(left, NOW) is not None


@given(queues(), st.booleans(), models)
def test_one_worker_takes_jobs_in_the_order_of_their_numbers(groups: list[Group], free: bool, warm: Models) -> None:
    made = assign(groups, [Place("w", free, warm)], NOW)
    first = min(groups, key=lambda group: group.number, default=None)
    assert [one.prompt_id for one in made] == ([first.first[0]] if first and free else [])


A, B = frozenset("a"), frozenset("b")


def group(needed: Models, count: int = 1, waited: float = 0.0, number: float = 1.0) -> Group:
    return Group(needed, [f"{''.join(needed)}{i}" for i in range(count)], count, number, NOW - waited)


@pytest.mark.parametrize(
    ("groups", "places", "expected"),
    [
        pytest.param([group(A)], [Place("w", True, B), Place("v", True, A)], {"v": "a0"}, id="the warm one"),
        pytest.param([group(A)], [Place("w", True, B), Place("v", False, A)], {}, id="waits for the warm one"),
        pytest.param([group(A, 1, 3.0)], [Place("w", True, B), Place("v", False, A)], {"w": "a0"}, id="three seconds"),
        pytest.param([group(A)], [Place("w", True, B), Place("v", True)], {"v": "a0"}, id="an empty one"),
        pytest.param([group(A)], [Place("w", True, B), Place("v", False, B)], {"w": "a0"}, id="nobody is warm"),
        pytest.param(
            [group(A, 2), group(B, number=-1.0)],
            [Place("w", True, A), Place("v", False, B)],
            {"w": "b0"},
            id="in front",
        ),
        pytest.param(
            [group(A, 9, 5.0), group(B, 2)], [Place("w", True, B), Place("v", False, A)], {"w": "a0"}, id="long queue"
        ),
        pytest.param(
            [group(A, 9, 5.0), group(B, 2)],
            [Place("w", True, B, NOW - 9), Place("v", False, A)],
            {"w": "b0"},
            id="steady",
        ),
        pytest.param(
            [group(A, 1, 70.0), group(B, 90)],
            [Place("w", True, B), Place("v", False, B)],
            {"w": "a0"},
            id="no starving",
        ),
    ],
)
def test_cases(groups: list[Group], places: list[Place], expected: dict[str, str]) -> None:
    assert {one.place: one.prompt_id for one in assign(groups, places, NOW)} == expected


@pytest.mark.parametrize(("seconds", "loads"), [(0.08, 5), (1.0, 8), (20.0, 12)])
def test_sixty_jobs_of_five_models_on_three_workers_load_each_model_about_once(seconds: float, loads: int) -> None:
    """All come at once. Jobs of 20 s wait for more than a minute, so that some models are loaded by a second worker."""
    waiting = {frozenset(name): [str(n) for n in range(60) if "abcde"[n % 5] == name] for name in "abcde"}
    places = {name: Place(name, True) for name in "uvw"}
    now, cold, ends = NOW, 0, list[tuple[float, str]]()
    while any(waiting.values()) or ends:
        groups = [Group(m, jobs[:3], len(jobs), float(jobs[0]), NOW, seconds) for m, jobs in waiting.items() if jobs]
        for made in assign(groups, list(places.values()), now):
            needed = next(m for m, jobs in waiting.items() if made.prompt_id in jobs)
            waiting[needed].remove(made.prompt_id)
            place, cold = places[made.place], cold + made.cold
            places[made.place] = Place(made.place, False, needed, now if made.cold else place.changed)
            heapq.heappush(ends, (now + seconds, made.place))
        now, freed = heapq.heappop(ends)
        places[freed] = Place(freed, True, places[freed].warm, places[freed].changed)
    assert cold <= loads


# -- a day in small ----------------------------------------------------------------------------------------------------

SPEEDS = [2.2] * 1 + [1.0] * 10 + [0.5] * 13 + [0.3] * 14 + [0.18] * 12  # a tenth of the 500 cards of the study
LOAD_SECONDS, MODELS = 3.0, 4
Policy = Callable[[Sequence[Group], Sequence[Place], float], list[Assignment]]


def oldest_first(groups: Sequence[Group], places: Sequence[Place], now: float) -> list[Assignment]:
    """What the rule is compared with: a worker's own models first, until the oldest job has waited 20 s."""
    made, taken = [], [0] * len(groups)
    for place in places:
        left = [i for i, one in enumerate(groups) if taken[i] < len(one.first)]
        own = [i for i in left if groups[i].models <= place.warm]
        oldest = min(left, key=lambda i: groups[i].since, default=None)
        if not place.free or oldest is None:
            continue
        best = min(own, key=lambda i: groups[i].since) if own and now - groups[oldest].since < 20 else oldest
        made.append(Assignment(groups[best].first[taken[best]], place.name, not groups[best].models <= place.warm))
        taken[best] += 1
    return made


def simulated(policy: Policy, load: float, jobs: int, seed: int = 1) -> tuple[float, float]:
    """(share of jobs for which models were loaded, mean seconds from coming in to the end). load 1: all are busy."""
    chance = random.Random(seed)
    rate = load * sum(SPEEDS) / 10.0
    weights = [1 / (i + 1) for i in range(MODELS)]
    events: list[tuple[float, int, str]] = []
    time = 0.0
    for number in range(jobs):
        time += chance.expovariate(rate)
        events.append((time, 0, str(number)))
    needs = {str(n): frozenset(f"m{chance.choices(range(MODELS), weights)[0]}".split()) for n in range(jobs)}
    work = {str(n): chance.uniform(5.0, 15.0) for n in range(jobs)}
    came = {prompt_id: when for when, _, prompt_id in events}
    waiting: dict[Models, deque[str]] = {}
    warm = [frozenset({f"m{chance.choices(range(MODELS), weights)[0]}"}) for _ in SPEEDS]  # by demand
    state = {f"w{i}": Place(f"w{i}", True, warm[i], speed=speed) for i, speed in enumerate(SPEEDS)}
    heapq.heapify(events)
    cold, latency = 0, 0.0
    while events:
        now, kind, subject = heapq.heappop(events)
        if kind == 0:
            waiting.setdefault(needs[subject], deque()).append(subject)
            heapq.heappush(events, (now + PATIENCE, 2, ""))
        elif kind == 1:
            state[subject] = Place(subject, True, state[subject].warm, state[subject].changed, state[subject].speed)
        free = sum(place.free for place in state.values())
        if not free or not waiting:
            continue
        groups = [
            Group(
                m,
                list(ids)[:free] if len(ids) < 99 else [ids[i] for i in range(free)],
                len(ids),
                1.0,
                came[ids[0]],
                20.0,
            )
            for m, ids in waiting.items()
        ]
        for made in policy(groups, list(state.values()), now):
            place, needed = state[made.place], needs[made.prompt_id]
            waiting[needed].remove(made.prompt_id)
            if not waiting[needed]:
                del waiting[needed]
            took = work[made.prompt_id] / place.speed + LOAD_SECONDS * made.cold
            state[place.name] = Place(place.name, False, needed, now if made.cold else place.changed, place.speed)
            heapq.heappush(events, (now + took, 1, place.name))
            cold += made.cold
            latency += now + took - came[made.prompt_id]
    return cold / jobs, latency / jobs


def test_a_simulated_day_has_few_cold_starts() -> None:
    cold, _ = simulated(assign, 0.46, 4000)  # a million jobs a day for the 500
    assert cold < 0.01


def test_more_jobs_than_can_be_done_do_not_make_workers_change_models_all_the_time() -> None:
    cold, latency = simulated(assign, 1.1, 6000)
    cold_oldest, latency_oldest = simulated(oldest_first, 1.1, 6000)
    assert cold < 0.02 < cold_oldest
    assert latency < latency_oldest
