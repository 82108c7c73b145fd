"""Tests of `_ingest.episodes`: the rows that steps become, and how they are linked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from areplay._base.episode_links import GAP, MAX_ENVIRONMENTS, NEXT_OFFSET, PREV_OFFSET, STEP_ID
from areplay._ingest.episodes import Episodes
from areplay.errors import SpecMismatch
from areplay.spec import Spec

SPEC = Spec.steps(obs=((2,), "float32"), action=((), "int64"), tag=((), "int32"))
NESTED = Spec.steps(
    obs={"camera": ((2, 2), "uint8"), "speed": ((), "float32")}, action={"0": ((), "int64")}
)


def step(number: int, ends: str = "", **changed: Any) -> dict[str, Any]:
    """A step from observation `number` to the next; `ends` is "t", "u" or nothing."""
    row: dict[str, Any] = {
        "obs": np.full(2, number, np.float32),
        "action": number,
        "reward": number / 2,
        "terminated": ends == "t",
        "truncated": ends == "u",
        "tag": -number,
        "next_obs": np.full(2, number + 1, np.float32),
    }
    return row | changed


def vector(numbers: list[int], ends: str, **changed: Any) -> dict[str, Any]:
    """A step of several environments; `ends` has a letter for each: "t", "u" or "."."""
    obs = np.repeat(np.array(numbers, np.float32)[:, None], 2, axis=1)
    row: dict[str, Any] = {
        "obs": obs,
        "action": np.array(numbers),
        "reward": np.zeros(len(numbers)),
        "terminated": np.array([letter == "t" for letter in ends]),
        "truncated": np.array([letter == "u" for letter in ends]),
        "tag": -np.array(numbers),
        "next_obs": obs + 1,
    }
    return row | changed


class Stream:
    """All rows that were handed in, in order, as one table."""

    def __init__(self, spec: Spec = SPEC, mode: str | None = None) -> None:
        self.episodes, self.rows = Episodes(spec), []
        if mode is not None:
            self.episodes.autoreset_mode = mode

    def add(self, row: dict[str, Any]) -> None:
        """Hand in one step."""
        made = self.episodes.rows(row)
        if isinstance(made, tuple):
            self.rows += [
                {name: np.asarray(value).copy() for name, value in one.items()} for one in made
            ]
        else:
            self.rows += [{name: made[name][k] for name in made} for k in range(len(made[STEP_ID]))]
        self.episodes.advance()

    def column(self, name: str) -> list[Any]:
        """The values of one field; of an observation its first number."""
        return [np.asarray(row[name]).ravel()[0].item() for row in self.rows]

    def chains(self) -> list[list[int]]:
        """For each episode, by its links from row to row, the rows that it consists of."""
        chains, ahead, back = [], self.column(NEXT_OFFSET), self.column(PREV_OFFSET)
        for start in range(len(self.rows)):
            if back[start] == 0:
                chain = [start]
                while ahead[chain[-1]] > 0 and chain[-1] + ahead[chain[-1]] < len(self.rows):
                    chain.append(chain[-1] + ahead[chain[-1]])
                    assert chain[-1] - back[chain[-1]] == chain[-2]
                chains.append(chain)
        return chains


def test_an_episode_of_t_steps_becomes_t_plus_one_rows() -> None:
    """The last one holds the final observation only, and the next episode follows."""
    stream = Stream()
    for number, ends in enumerate(["", "", "t", "", "u"]):
        stream.add(step(number if number < 3 else number + 1, ends))
    assert stream.column("obs") == [0, 1, 2, 3, 4, 5, 6]
    assert stream.column("action") == [0, 1, 2, 0, 4, 5, 0]
    assert stream.column("terminated") == [False, False, True, False, False, False, False]
    assert stream.column("truncated") == [False] * 5 + [True, False]
    assert stream.column(STEP_ID) == [0, 1, 2, 3, (1 << 32), (1 << 32) + 1, (1 << 32) + 2]
    assert stream.column(NEXT_OFFSET) == [1, 1, 1, -1, 1, 1, -1]
    assert stream.column(PREV_OFFSET) == [0, 1, 1, 1, 0, 1, 1]


def test_many_steps_at_once_become_the_rows_that_they_become_one_by_one() -> None:
    """Columns of n steps in any cut, with ends anywhere."""
    rng = np.random.default_rng(5)
    ends = ["" if rng.random() < 0.7 else "tu"[rng.integers(2)] for _ in range(40)]
    numbers, number = [], 0
    for end in ends:
        numbers.append(number)
        number += 2 if end else 1
    one, many = Stream(), Stream()
    for number, end in zip(numbers, ends, strict=True):
        one.add(step(number, end))
    start = 0
    for count in (1, 2, 13, 4, 20):
        rows = [
            step(n, e)
            for n, e in zip(
                numbers[start : start + count], ends[start : start + count], strict=True
            )
        ]
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        columns |= {
            "tag": columns["tag"].astype(np.int32),
            "reward": columns["reward"].astype(np.float32),
        }
        made, which = many.episodes.columns(columns)
        assert made["obs"][which].tolist() == [[n, n] for n in numbers[start : start + count]]
        many.rows += [{name: made[name][k] for name in made} for k in range(len(made[STEP_ID]))]
        many.episodes.advance()
        start += count
    for name in one.rows[0]:
        assert many.column(name) == one.column(name), name


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_the_rows_of_a_vector_are_linked_to_its_episodes(mode: str) -> None:
    """In each mode: following the links gives each environment's observations, final ones included,
    and no other."""
    rng, count = np.random.default_rng(7), 4
    stream = Stream(mode=mode)
    now = np.arange(count) * 1_000  # environments count their observations
    truth = [[[n]] for n in now.tolist()]  # for each environment its episodes' observations
    resets = np.zeros(count, bool)
    for _ in range(60):
        ended = (rng.random(count) < 0.2) & ~resets
        step = vector(now.tolist(), "".join("t" if end else "." for end in ended))
        after = now + 1
        for k in range(count):
            if mode == "NextStep" and resets[k]:
                truth[k].append([int(after[k])])
            else:
                truth[k][-1].append(int(after[k]))
        if mode == "SameStep":
            final = np.array(
                [[n, n] if end else None for n, end in zip(after, ended, strict=True)], object
            )
            step["final_obs"] = [
                None if one is None else np.array(one, np.float32) for one in final
            ]
            after[ended] += 1  # the first observation of the next episode comes with the end
            step["next_obs"] = np.repeat(after[:, None], 2, axis=1).astype(np.float32)
        stream.add(step)
        if mode != "NextStep":
            after[ended] += mode == "Disabled"  # here the caller resets
            for k in np.flatnonzero(ended):
                truth[k].append([int(after[k])])
        resets, now = ended if mode == "NextStep" else resets, after
    observations, ahead = stream.column("obs"), stream.column(NEXT_OFFSET)
    found = sorted([observations[row] for row in chain] for chain in stream.chains())
    # The last observation of an episode that goes on is not stored yet, nor one that has only
    # begun.
    expected = sorted(
        episode if k < len(episodes) - 1 else episode[:-1]
        for episodes in truth
        for k, episode in enumerate(episodes)
    )
    assert found == [episode for episode in expected if episode]
    assert sum(distance < 0 for distance in ahead) >= 20
    extra = 0 if mode == "NextStep" else sum(distance < 0 for distance in ahead)
    assert len(stream.rows) == 60 * count + extra, (
        "a row a step, and one more for each end unless its step has one"
    )


def test_episodes_side_by_side_never_share_a_moment() -> None:
    """What a moment names is unique in the stream."""
    stream = Stream(mode="Disabled")
    rng, now = np.random.default_rng(3), np.arange(3) * 100
    for _ in range(30):
        ended = rng.random(3) < 0.4
        stream.add(vector(now.tolist(), "".join("u" if end else "." for end in ended)))
        now = now + 1 + ended
    moments = stream.column(STEP_ID)
    assert len(set(moments)) == len(moments)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_after_a_gap_nothing_is_linked_over_it(mode: str) -> None:
    """Rows that got lost leave a new chain that does not claim to be an episode's beginning; in
    mode NextStep the first row after it could be one of a reset, so no step is made of it."""
    stream = Stream(mode=mode)
    stream.add(vector([0, 100], ".."))
    stream.episodes.rows(vector([1, 101], ".."))
    stream.episodes.cut()
    stream.add(vector([2, 102], ".."))
    stream.add(vector([3, 103], ".."))
    assert stream.column(PREV_OFFSET) == [
        0,
        0,
        0,
        0,
        0 if mode == "NextStep" else 2,
        0 if mode == "NextStep" else 2,
    ]
    assert [moment & 0xFFFFFFFF for moment in stream.column(STEP_ID)][:4] == [0, 0, GAP, GAP]
    is_next_step = mode == "NextStep"
    assert [distance < 0 for distance in stream.column(NEXT_OFFSET)] == [False] * 2 + [
        is_next_step
    ] * 2 + [False] * 2
    assert len({moment >> 32 for moment in stream.column(STEP_ID)}) == (
        6 if mode == "NextStep" else 4
    )


def test_after_a_gap_one_environment_goes_on_unlinked() -> None:
    """Also when the step that got lost was an episode's last."""
    stream = Stream()
    stream.add(step(0))
    stream.episodes.rows(step(1, "t"))
    stream.episodes.cut()
    stream.add(step(10))
    stream.add(step(11, "t"))
    stream.add(step(20))
    assert stream.column(PREV_OFFSET) == [0, 0, 1, 1, 0]
    assert [moment & 0xFFFFFFFF for moment in stream.column(STEP_ID)] == [
        0,
        GAP,
        GAP + 1,
        GAP + 2,
        0,
    ]


def hand_in(stream: Stream, row: dict[str, Any]) -> None:
    """A step by a ticket, as actors do."""
    with stream.episodes.step(stream.episodes.ticket()):
        made = stream.episodes.rows(row)
    stream.rows += (
        [dict(one) for one in made]
        if isinstance(made, tuple)
        else [{name: made[name][k] for name in made} for k in range(len(made[STEP_ID]))]
    )


def numbers_of(stream: Stream) -> list[int]:
    """Which step of its episode each row is."""
    return [moment & 0xFFFFFFFF for moment in stream.column(STEP_ID)]


@pytest.mark.parametrize("gives_next", [True, False])
def test_an_episode_that_is_broken_off_leads_nowhere(gives_next: bool) -> None:
    """No row is written; the next row begins an episode, whatever the step before has announced, by
    add or extend."""
    stream = Stream()
    changes: dict[str, Any] = {} if gives_next else {"next_obs": None}
    stream.episodes.break_off()
    hand_in(stream, step(0, **changes))
    hand_in(stream, step(1, **changes))
    stream.episodes.break_off()
    stream.episodes.break_off([0])
    assert len(stream.rows) == 2
    hand_in(stream, step(50, **changes))
    hand_in(stream, step(51, "t"))
    stream.episodes.break_off()  # there is nothing to break off
    hand_in(stream, step(70, **changes))
    assert stream.column(PREV_OFFSET) == [0, 1, 0, 1, 1, 0]
    assert numbers_of(stream) == [0, 1, 0, 1, 2, 0]
    assert len({moment >> 32 for moment in stream.column(STEP_ID)}) == 3
    stream.episodes.break_off()
    columns: dict[str, Any] = {name: [step(80 + k)[name] for k in range(2)] for name in step(0)}
    with stream.episodes.step(stream.episodes.ticket()):
        rows, _ = stream.episodes.columns(columns)
    assert rows[PREV_OFFSET].tolist() == [0, 1] and (rows[STEP_ID] & 0xFFFFFFFF).tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize(
    "chosen", [[1], 1, np.array([False, True, False]), (1,), np.array([1, 1], np.uint8)]
)
def test_some_environments_of_a_vector_are_broken_off(mode: str, chosen: Any) -> None:
    """The others go on as announced; in mode NextStep the next step of those is one, though an
    episode had ended."""
    stream = Stream(mode=mode)
    ends = ".t." if mode == "NextStep" else "..."
    hand_in(stream, vector([0, 10, 20], "..."))
    hand_in(stream, vector([1, 11, 21], ends))
    stream.episodes.break_off(chosen)
    hand_in(stream, vector([2, 50, 22], "..."))
    hand_in(stream, vector([3, 51, 23], "..."))
    assert stream.column(PREV_OFFSET) == [0, 0, 0, 3, 3, 3, 3, 0, 3, 3, 3, 3]
    assert numbers_of(stream) == [0, 0, 0, 1, 1, 1, 2, 0, 2, 3, 1, 3]
    assert min(stream.column(NEXT_OFFSET)) > 0
    with pytest.raises(SpecMismatch, match=r"of environment 0.*end_episode\(\) if it breaks off"):
        hand_in(stream, vector([9, 52, 24], "..."))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_after_a_break_that_follows_a_gap_the_beginning_is_known(mode: str) -> None:
    """Of those that were broken off; a step that gets lost after that leaves a gap again."""
    stream = Stream(mode=mode)
    hand_in(stream, vector([0, 10], ".."))
    stream.episodes.ticket()  # and is lost
    stream.episodes.break_off([1])
    hand_in(stream, vector([2, 50], ".."))
    assert [number == 0 for number in numbers_of(stream)[2:]] == [False, True]
    assert [ahead > 0 for ahead in stream.column(NEXT_OFFSET)[2:]] == [mode != "NextStep", True]
    stream.episodes.break_off()
    stream.episodes.ticket()
    hand_in(stream, vector([4, 60], ".."))
    assert 0 not in numbers_of(stream)[4:]


def test_a_break_holds_from_its_place_among_the_steps_on() -> None:
    """Those that were asked for before it and are handed in later go on where they were."""
    stream = Stream()
    tickets = [stream.episodes.ticket(), stream.episodes.ticket()]
    stream.episodes.break_off()
    tickets.append(stream.episodes.ticket())
    for number, ticket in enumerate(tickets):
        with stream.episodes.step(ticket):
            stream.rows += stream.episodes.rows(step(number, next_obs=None))
    assert stream.column(PREV_OFFSET) == [0, 1, 0] and numbers_of(stream) == [0, 1, 0]


def test_a_break_after_a_first_step_that_was_refused() -> None:
    """How many environments that step had is forgotten, and the next one's beginnings are known."""
    stream = Stream(mode="SameStep")
    with pytest.raises(SpecMismatch):
        hand_in(stream, vector([0, 10, 20], "...", reward=np.zeros((7, 7))))
    stream.episodes.break_off()
    hand_in(stream, vector([1, 11], ".."))
    assert numbers_of(stream) == [0, 0]


def test_environments_may_be_chosen_before_it_is_known_how_many_there_are() -> None:
    """When the first step got lost: the others' beginnings are not known, and neither is any after
    another loss."""
    for loses_again in (False, True):
        stream = Stream(mode="SameStep")
        stream.episodes.ticket()
        stream.episodes.break_off(np.array([False, True]))
        if loses_again:
            stream.episodes.ticket()
        hand_in(stream, vector([0, 10], ".."))
        assert numbers_of(stream) == [GAP, GAP if loses_again else 0]


@pytest.mark.parametrize(
    "wrong",
    [
        [2],
        [-1],
        -1,
        "1",
        [0.5],
        np.array([True]),
        np.zeros((2, 2), np.bool_),
        [None],
        {"a": 1},
        [[0]],
    ],
)
def test_other_choices_of_environments_are_refused(wrong: Any) -> None:
    """With what is allowed; and nothing is broken off."""
    stream = Stream(mode="SameStep")
    hand_in(stream, vector([0, 10], ".."))
    with pytest.raises(
        ValueError,
        match=r"environments must be indices from 0, or a mask of bool, "
        r"of 2 environments",
    ):
        stream.episodes.break_off(wrong)
    stream.episodes.break_off([])
    stream.episodes.break_off(np.zeros(2, np.bool_))
    hand_in(stream, vector([1, 11], ".."))
    assert stream.column(PREV_OFFSET) == [0, 0, 2, 2]


def test_a_broken_off_environment_may_begin_as_the_last_one_would_have_gone_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No warning says that it was not reset."""
    stream = Stream(mode="Disabled")
    hand_in(stream, vector([0, 10], ".."))
    stream.episodes.break_off([1])
    hand_in(stream, vector([1, 11], ".."))
    assert caplog.messages == [] and numbers_of(stream) == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"terminated": True, "next_obs": None}, "next_obs"),
        ({"obs": np.zeros(3, np.float32)}, "obs"),
        ({"next_obs": np.zeros(2)}, "next_obs"),
        ({"obs": np.full(2, 7, np.float32)}, "obs"),
        ({"terminated": 2}, "terminated"),
        ({"tagg": 1}, "tagg"),
        ({"final_obs": np.zeros(2, np.float32)}, "final_obs"),
        ({"terminated": np.array([[True]])}, "terminated"),
        ({"terminated": np.zeros(MAX_ENVIRONMENTS + 1, np.bool_)}, "terminated"),
        ({"terminated": np.zeros(2, np.bool_)}, "terminated"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_by_name(wrong: dict[str, Any], field: str) -> None:
    """A missing final observation, a wrong shape or dtype, an observation that does not follow, a
    misspelt field."""
    stream = Stream()
    stream.add(step(0))
    with pytest.raises(SpecMismatch) as caught:
        made = stream.episodes.rows(step(1, **wrong))
        # single rows are checked field by field where they are written
        stream.episodes._spec["obs"].convert(made[0]["obs"])  # type: ignore[index]
    assert caught.value.field == field
    stream.add(step(1))
    assert stream.column("obs") == [0, 1], "and nothing was changed by it"


def test_an_observation_must_follow_from_the_one_before_in_every_way_in() -> None:
    """One step, columns within and at their beginning, a vector; NaN follows from NaN."""
    stream = Stream()
    columns = {name: np.array([step(0)[name], step(2)[name]]) for name in step(0)}
    columns |= {
        "tag": columns["tag"].astype(np.int32),
        "reward": columns["reward"].astype(np.float32),
    }
    with pytest.raises(SpecMismatch, match="of step 1"):
        stream.episodes.columns(columns)
    stream.add(step(5))
    with pytest.raises(SpecMismatch, match="of the first step"):
        stream.episodes.columns({name: column[:1] for name, column in columns.items()})
    lanes = Stream()
    lanes.add(vector([0, 10], ".."))
    with pytest.raises(SpecMismatch, match="of environment 1"):
        lanes.add(vector([1, 12], ".."))
    holes = Stream()
    nan = np.full(2, np.nan, np.float32)
    holes.add(step(0, next_obs=nan))
    holes.add(step(1, obs=nan))


def test_what_cannot_come_from_environments_of_that_mode_is_refused() -> None:
    """The remedy names the mode to set."""
    same_as_next = Stream()
    same_as_next.add(vector([0, 10], "t."))
    with pytest.raises(SpecMismatch, match="autoreset_mode") as caught:
        same_as_next.add(vector([1, 11], "..", reward=np.ones(2)))
    assert caught.value.field == "reward"
    # a wrapper may change rewards: whoever says the mode is believed
    chosen = Stream(mode="NextStep")
    chosen.add(vector([0, 10], "t."))
    chosen.add(vector([1, 11], "..", reward=np.ones(2)))
    with pytest.raises(SpecMismatch, match="no end in the step of a reset"):
        both = Stream()
        both.add(vector([0, 10], "t."))
        both.add(vector([1, 11], "t."))
    with pytest.raises(SpecMismatch, match="final_obs"):
        Stream().add(vector([0, 10], "t.", final_obs=np.array([np.zeros(2), None], object)))
    with pytest.raises(SpecMismatch, match="info\\['final_obs'\\]"):
        Stream(mode="SameStep").add(vector([0, 10], "t."))
    with pytest.raises(SpecMismatch, match="environment 0, which ended"):
        Stream(mode="SameStep").add(vector([0, 10], "t.", final_obs=[None, None]))
    with pytest.raises(SpecMismatch, match="next_obs"):
        Stream(mode="Disabled").add(vector([0, 10], "t.", next_obs=None))


def test_an_end_in_an_undeclared_mode_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """The default is gymnasium's own; whether it is right nobody can see, so nobody relies on it
    unknowingly."""
    stream = Stream()
    stream.add(vector([0, 10], ".."))
    assert caplog.messages == []
    stream.add(vector([1, 11], "t."))
    stream.add(vector([2, 12], ".."))
    stream.add(vector([3, 13], "t."))
    assert len(caplog.messages) == 1 and "autoreset_mode" in caplog.messages[0]
    declared = Stream(mode="NextStep")
    declared.add(vector([1, 11], "t."))
    assert len(caplog.messages) == 1


def test_environments_that_were_not_reset_are_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In mode Disabled the caller resets; an episode that begins where the last one ended looks as
    if nobody did."""
    stream = Stream(mode="Disabled")
    stream.add(vector([0, 10], "t."))
    stream.add(vector([5, 11], ".t"))
    assert caplog.messages == []
    stream.add(vector([6, 12], "t."))
    stream.add(vector([7, 13], ".."))
    assert len(caplog.messages) == 1 and "environment 1" in caplog.messages[0]


def test_the_mode_is_set_before_the_first_step() -> None:
    """By name or as gymnasium's own; another one is a mistake."""
    from gymnasium.vector import AutoresetMode

    episodes = Episodes(SPEC)
    episodes.autoreset_mode = AutoresetMode.SAME_STEP
    assert episodes.autoreset_mode == "SameStep"
    with pytest.raises(ValueError, match="NextStep, SameStep, Disabled"):
        episodes.autoreset_mode = "same"
    episodes.rows(step(0))
    episodes.advance()
    episodes.autoreset_mode = "SameStep"
    with pytest.raises(ValueError, match="before"):
        episodes.autoreset_mode = "NextStep"


def test_nested_observations_are_given_as_they_come() -> None:
    """Dicts and tuples, in steps, next observations and final ones, of one environment and of a
    vector."""
    stream = Stream(NESTED)
    obs = {"camera": np.ones((2, 2), np.uint8), "speed": 1.5}
    final = {"camera": np.full((2, 2), 9, np.uint8), "speed": 9.5}
    stream.add(
        {
            "obs": obs,
            "action": (3,),
            "reward": 1.0,
            "terminated": True,
            "truncated": False,
            "next_obs": final,
        }
    )
    assert stream.column("obs.camera") == [1, 9]
    assert stream.column("obs.speed") == [1.5, 9.5]
    assert stream.column("action.0") == [3, 0]
    with pytest.raises(SpecMismatch, match=r"next_obs\.speed"):
        stream.episodes.rows(
            {
                "obs": obs,
                "action": (3,),
                "reward": 1.0,
                "terminated": True,
                "truncated": False,
                "next_obs": {"camera": final["camera"]},
            }
        )
    lanes = Stream(NESTED, mode="SameStep")
    both = {"camera": np.ones((2, 2, 2), np.uint8), "speed": np.array([1.5, 2.5])}
    lanes.add(
        {
            "obs": both,
            "action": (np.array([3, 4]),),
            "reward": np.ones(2),
            "terminated": np.array([False, True]),
            "truncated": np.zeros(2, bool),
            "next_obs": both,
            "final_obs": np.array([None, final], object),
        }
    )
    assert lanes.column("obs.speed") == [1.5, 2.5, 9.5]


# What got lost, and what cannot be right.


def test_a_ticket_that_was_not_shown_is_a_step_that_got_lost() -> None:
    """A call that was cancelled before it began: the next one begins a chain of its own."""
    stream = Stream()
    for number in (0, 1):
        with stream.episodes.step(stream.episodes.ticket()):
            stream.rows += stream.episodes.rows(step(number, next_obs=None))
    stream.episodes.ticket()
    with stream.episodes.step(stream.episodes.ticket()):
        stream.rows += stream.episodes.rows(step(3))
    assert stream.column(PREV_OFFSET) == [0, 1, 0]
    assert stream.column(STEP_ID)[2] & 0xFFFFFFFF == GAP


def test_one_task_at_a_time_hands_in_steps() -> None:
    """The second one is refused; its step is lost, and that of the first is not."""
    stream = Stream()
    with stream.episodes.step(stream.episodes.ticket()):
        stream.rows += stream.episodes.rows(step(0))
        with (
            pytest.raises(RuntimeError, match="another task"),
            stream.episodes.step(stream.episodes.ticket()),
        ):
            pass
    with stream.episodes.step(stream.episodes.ticket()):
        stream.rows += stream.episodes.rows(step(2))
    assert stream.column(PREV_OFFSET) == [0, 0]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_first_step_that_got_lost_is_a_gap_and_decides_nothing(mode: str) -> None:
    """How many environments there are, and their mode, is said by the first step that is
    accepted."""
    stream = Stream()
    with pytest.raises(SpecMismatch), stream.episodes.step(stream.episodes.ticket()):
        stream.episodes.rows(vector([0, 10, 20], "...", oops=1))
    stream.episodes.autoreset_mode = mode
    with stream.episodes.step(stream.episodes.ticket()):
        made = stream.episodes.rows(vector([1, 11], ".."))
    assert not isinstance(made, tuple)
    assert (made[STEP_ID] & 0xFFFFFFFF).tolist() == [GAP, GAP]
    assert (made[NEXT_OFFSET] < 0).all() == (mode == "NextStep")
    one = Stream()
    with pytest.raises(SpecMismatch), one.episodes.step(one.episodes.ticket()):
        one.episodes.rows(step(0, terminated=np.array([False]), truncated=np.array([False])))
    one.add(step(1))
    assert one.column(STEP_ID)[0] & 0xFFFFFFFF == GAP


@pytest.mark.parametrize(
    "final_obs", [[], [None], 5, {"x": 1}, {"obs": np.zeros(1)}, np.zeros((1, 2), np.float32)]
)
def test_final_observations_of_another_form_are_refused_by_name(final_obs: object) -> None:
    """Too few, no sequence at all, a dict where there is none."""
    with pytest.raises(SpecMismatch, match="final_obs"):
        Stream(mode="SameStep").add(vector([0, 10], ".t", final_obs=final_obs))


@pytest.mark.parametrize("nothing", [{}, (), {"a": {}}, {"a": ()}, ({}, ())])
def test_a_field_without_parts_is_no_field(nothing: Any) -> None:
    """A misspelt name is refused whatever its value, also one that has no parts; so are parts that
    the spec lacks."""
    obs = {"camera": np.ones((2, 2), np.uint8), "speed": 1.5}
    row = {"obs": obs, "action": (3,), "reward": 1.0, "terminated": False, "truncated": False}
    Stream(NESTED).add(row)
    for wrong in (
        {"acton": nothing},
        {"obs": obs | {"lidar": nothing}},
        {"next_obs": obs | {"lidar": nothing}},
        {"obs": obs, "next_ops": nothing},
    ):
        with pytest.raises(SpecMismatch, match="the spec lacks"):
            Stream(NESTED).add(row | wrong)


def test_a_field_that_is_given_twice_is_refused() -> None:
    """As a part and by its dotted name: one of the values would be dropped."""
    obs = {"camera": np.ones((2, 2), np.uint8), "speed": 1.5}
    row = {"obs": obs, "action": (3,), "reward": 1.0, "terminated": False, "truncated": False}
    for wrong in ({"obs.speed": 2.5}, {"obs": obs | {"speed.x": 1}}, {"action": {0: 3, "0": 3}}):
        with pytest.raises(SpecMismatch):
            Stream(NESTED).add(row | wrong)


def test_what_is_nested_must_come_nested() -> None:
    """A next observation that is no dict is not taken for none; extras may be nested where nothing
    else is."""
    obs = {"camera": np.ones((2, 2), np.uint8), "speed": 1.5}
    row = {"obs": obs, "action": (3,), "reward": 1.0, "terminated": True, "truncated": False}
    with pytest.raises(SpecMismatch, match="ndarray") as caught:
        Stream(NESTED).add(row | {"next_obs": np.zeros(3)})
    assert caught.value.field == "next_obs"
    lstm = Stream(
        Spec.steps(obs=((2,), "float32"), action=((), "int64"), lstm={"h": ((2,), "float32")})
    )
    row = {name: value for name, value in step(0).items() if name != "tag"}
    lstm.add(row | {"lstm": {"h": np.ones(2, np.float32)}})
    assert lstm.column("lstm.h") == [1.0]
    with pytest.raises(SpecMismatch, match="several lengths"):
        Stream().add(step(0, terminated=[True, [False]]))


# Observations that come in the memory of those before.

REUSED = "memory of its own"


def quietly(number: int, ends: str = "", **changed: Any) -> dict[str, Any]:
    """A step that does not tell its next observation, but at the end."""
    row = step(number, ends, **changed)
    return row if ends else {name: value for name, value in row.items() if name != "next_obs"}


class InPlace:
    """An environment that has one array for its observations, handed out as it is or as `wrap`
    makes it."""

    def __init__(self, shape: tuple[int, ...] = (2,), wrap: Any = lambda array: array) -> None:
        self.array, self.count, self.wrap = np.zeros(shape, np.float32), 0, wrap

    def step(self) -> Any:
        """The next observation, written over the one before."""
        self.count += 1
        self.array[...] = self.count
        return self.wrap(self.array)


WRAPS: dict[str, Any] = {
    "the array": lambda array: array,
    "a view of it": lambda array: array[:],
    "a list of views": lambda array: [array[0, ...], array[1, ...]],
    "what has its memory": memoryview,
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("tells", [False, True])
def test_an_environment_that_overwrites_its_observations_is_noticed(wrap: str, tells: bool) -> None:
    """At the second step, with and without the next observation; again after that, and nothing is
    linked to it."""
    env, stream = InPlace(wrap=WRAPS[wrap]), Stream()
    obs, number = env.wrap(env.array), 0
    for attempt in range(4):
        next_obs = env.step()
        given = quietly(0, obs=obs) | ({"next_obs": next_obs} if tells else {})
        if attempt == 0:
            stream.add(given)
        elif attempt == 1 or not tells:
            with pytest.raises(
                SpecMismatch, match=REUSED if not tells else "copy|step before"
            ) as caught:
                stream.add(given)
            assert caught.value.field == "obs"
            stream.episodes.cut()
        obs, number = next_obs, number + 1
    assert len(stream.rows) == 1


def test_a_tensor_that_is_overwritten_is_noticed() -> None:
    """Also if each step hands out another view of it."""
    torch = pytest.importorskip("torch")
    tensor, stream = torch.zeros(2), Stream()
    stream.add(quietly(0, obs=tensor[:]))
    tensor += 1
    with pytest.raises(SpecMismatch, match=REUSED):
        stream.add(quietly(0, obs=tensor[:]))


def test_a_large_observation_that_is_overwritten_is_noticed_a_step_later() -> None:
    """It is not copied before it has come in the same memory twice."""
    spec = Spec.steps(obs=((5_000,), "uint8"), action=((), "int64"))
    stream, obs = Stream(spec), np.zeros(5_000, np.uint8)
    row = {"obs": obs, "action": 0, "reward": 0.0, "terminated": False, "truncated": False}
    for attempt in range(3):
        obs += 1
        if attempt < 2:
            stream.add(row)
        else:
            with pytest.raises(SpecMismatch, match=REUSED):
                stream.add(row)


def test_one_step_episodes_that_overwrite_their_observations_are_noticed() -> None:
    """`obs` and `next_obs` are one array there, and no continuity tells it."""
    env, stream = InPlace(), Stream()
    obs = env.step()
    stream.add(step(0, "t", obs=obs, next_obs=env.step()))
    env.step()
    with pytest.raises(SpecMismatch, match=REUSED):
        stream.add(step(0, "t", obs=obs, next_obs=env.step()))


def test_memory_that_is_used_rightly_is_taken() -> None:
    """A constant, two arrays in turn, views along a longer array, a copy that `next_obs` vouches
    for, a part that changes when the episode does, new arrays at an address that was used before,
    and numbers."""
    constant = np.ones(2, np.float32)
    stream = Stream()
    for _ in range(3):
        stream.add(quietly(0, obs=constant))
    pair, stream = [np.zeros(2, np.float32), np.zeros(2, np.float32)], Stream()
    for number in range(6):
        pair[number % 2][:] = number
        stream.add(quietly(0, obs=pair[number % 2]))
    assert stream.column("obs") == list(range(6))
    frames, stream = np.arange(9, dtype=np.float32), Stream()
    for number in range(6):
        stream.add(quietly(0, obs=frames[number : number + 2]))
    own, stream = np.zeros(2, np.float32), Stream()
    for number in range(6):
        own[:] = number
        stream.add(step(number, "t" if number == 3 else "", obs=own))
    assert stream.column("obs") == [0, 1, 2, 3, 4, 4, 5]
    goal, stream = np.zeros((2, 2), np.uint8), Stream(NESTED)
    for number in range(6):
        obs, next_obs = ({"camera": goal, "speed": np.float32(n)} for n in (number, number + 1))
        row = {
            "obs": obs,
            "action": (3,),
            "reward": 1.0,
            "terminated": number % 2 == 1,
            "truncated": False,
        }
        stream.add(row | ({"next_obs": next_obs} if number % 2 else {}))
        if number % 2:
            goal += 1
    stream = Stream()
    for number in range(50):
        stream.add(quietly(0, obs=np.full(2, number, np.float32)))
    scalar = Stream(Spec.steps(obs=((), "int64"), action=((), "int64")))
    for number in (3, 3, 4, 4):
        scalar.add(
            {"obs": number, "action": 0, "reward": 0.0, "terminated": False, "truncated": False}
        )
    assert scalar.column("obs") == [3, 3, 4, 4]


def test_a_part_that_is_overwritten_within_an_episode_is_noticed() -> None:
    """Though the others are new arrays."""
    stream, camera = Stream(NESTED), np.zeros((2, 2), np.uint8)
    row = {"action": (3,), "reward": 1.0, "terminated": False, "truncated": False}
    stream.add(row | {"obs": {"camera": camera, "speed": np.float32(0)}})
    camera += 1
    with pytest.raises(SpecMismatch, match=REUSED) as caught:
        stream.add(row | {"obs": {"camera": camera, "speed": np.float32(1)}})
    assert caught.value.field == "obs.camera"


def test_only_the_step_before_counts() -> None:
    """Steps that came together, from other memory, are between."""
    stream, obs = Stream(), np.zeros(2, np.float32)
    stream.add(quietly(0, obs=obs))
    given = {
        name: np.repeat(np.asarray(value)[None], 2, axis=0) for name, value in quietly(1).items()
    }
    given["reward"] = np.zeros(2, np.float32)
    given["tag"] = np.zeros(2, np.int32)
    stream.episodes.columns(given)
    stream.episodes.advance()
    obs += 3
    stream.add(quietly(3, obs=obs))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_vector_that_overwrites_its_observations_is_noticed(mode: str) -> None:
    """In each mode, if nothing tells the next observation."""
    stream, obs = Stream(mode=mode), np.zeros((2, 2), np.float32)
    given = vector([0, 1], "..", obs=obs)
    del given["next_obs"]
    stream.add(given)
    stream.add(given)
    obs += 1
    for _ in range(2):
        with pytest.raises(SpecMismatch, match=REUSED):
            stream.add(given)
        stream.episodes.cut()
    stream.add(given | {"obs": obs.copy()})


def test_the_memory_of_the_caller_counts_where_a_copy_is_handed_in() -> None:
    """A call that had to wait before copied its arrays."""
    stream, obs = Stream(), np.zeros(2, np.float32)
    for number in range(2):
        obs[:] = number
        row = quietly(0, obs=obs)
        copy = row | {"obs": obs.copy()}
        if number == 0:
            stream.episodes.rows(copy, row)
            stream.episodes.advance()
        else:
            with pytest.raises(SpecMismatch, match=REUSED):
                stream.episodes.rows(copy, row)


def test_a_list_of_one_observation_many_times_is_refused() -> None:
    """An environment that overwrites its observations leaves the last one in each place of such a
    list."""
    array = np.zeros(2, np.float32)
    given = {"action": np.arange(3), "reward": np.zeros(3), "tag": np.zeros(3, np.int32)}
    given |= {
        "reward": np.zeros(3, np.float32),
        "terminated": np.zeros(3, bool),
        "truncated": np.zeros(3, bool),
    }
    for same in ([array] * 3, [array[:] for _ in range(3)], [array.copy(), array, array]):
        for theirs in (None, given | {"obs": same}):
            obs = same if theirs is None else [one.copy() for one in same]
            with pytest.raises(SpecMismatch, match=REUSED) as caught:
                Episodes(SPEC).columns(given | {"obs": obs}, theirs)
            assert caught.value.field == "obs"
    frames = np.zeros(4, np.float32)
    for fine in (
        [array.copy() for _ in range(3)],
        [frames[k : k + 2] for k in range(3)],
        [[0.0, 0.0]] * 1 + [[1, 1], [2, 2]],
    ):
        Episodes(SPEC).columns(given | {"obs": fine})


def test_a_tensor_chooses_environments_and_what_is_no_array_does_not() -> None:
    """A ValueError that says what to do, and nothing has changed."""
    torch = pytest.importorskip("torch")
    stream = Stream(mode="Disabled")
    stream.add(vector([0, 10], ".."))
    stream.episodes.break_off(torch.tensor([True, False]))
    stream.episodes.break_off(torch.tensor([1]))
    for wrong in (torch.zeros(2, requires_grad=True), torch.zeros(2, device="meta")):
        with pytest.raises(ValueError, match=r"environments must be .*\.detach\(\)\.cpu\(\)"):
            stream.episodes.break_off(wrong)
    with pytest.raises(ValueError, match="autoreset_mode must be"):
        Episodes(SPEC).autoreset_mode = np.zeros(2)
