"""The published evaluator and rewards: reproduced exactly, flaws included, on hostile text too."""

import json

import pytest
from answers import xml
from running import BLOG, needs_blog, within

from data.common.files import read_jsonl
from rewards import blog
from rewards.blog import BlogStatus

# Art and Band touch, Band and Chess overlap, Drill runs past midnight. The optimum is 60 + 60 +
# 2 * 90 + 85: Art, Band, Choir, Drill.
ART, BAND = ["Art", "09:00", "10:00"], ["Band", "10:00", "11:00"]
CHESS, CHOIR = ["Chess", "10:30", "11:15"], ["Choir", "12:00", "13:30"]
DRILL = ["Drill", "23:30", "24:55"]
ROW = {
    "events": [ART, BAND, CHESS, CHOIR, DRILL],
    "priority_events": ["Choir"],
    "optimal_score": 385,
}


def answer(*events, think="<think>\nhm\n</think>\n") -> str:
    return think + xml(*events)


@needs_blog
def test_every_published_judgement_and_reward_comes_out_exactly():
    rows = {row["index"]: row for _, row in read_jsonl(BLOG / "test.jsonl")}
    for model, expected in json.loads((BLOG / "expected.json").read_text()).items():
        ours = []
        for _, sample in read_jsonl(BLOG / f"completions-{model}.jsonl"):
            index, completion = sample["index"], sample["completion"]
            status, score = blog.judge(rows[index], completion)
            paid = blog.rewards(rows[index], completion)
            ours.append({"index": index, "status": status, "score": score, **paid})
        assert ours == expected["samples"], model


@pytest.mark.parametrize(
    ("completion", "status", "score"),
    [
        ("", BlogStatus.FORMAT_ERROR, 0.0),
        (answer(ART, CHOIR).removesuffix("</schedule>"), BlogStatus.FORMAT_ERROR, 0.0),
        (answer(ART), BlogStatus.FEWER_THAN_2_EVENTS, 0.0),
        (answer(ART, ["Sailing", "12:00", "13:00"]), BlogStatus.NON_EXISTING, 0.0),
        (answer(ART, ["Choir", "12:00", "13:31"]), BlogStatus.NON_EXISTING, 0.0),
        (answer(ART, ART, CHOIR), BlogStatus.NON_EXISTING, 0.0),
        (answer(CHOIR, ART), BlogStatus.UNSORTED, 0.0),
        (answer(BAND, CHESS), BlogStatus.OVERLAPS, 0.0),
        (answer(ART, CHOIR), BlogStatus.VALID, 240 / 385),
        (answer(ART, CHOIR, think=""), BlogStatus.VALID, 240 / 385),
        (answer(ART, BAND, CHOIR, DRILL), BlogStatus.VALID, 1.0),
        (answer(CHOIR, think=f"<think>{xml(ART)}</think>"), BlogStatus.VALID, 240 / 385),
    ],
)
def test_each_status_of_the_published_evaluator(completion, status, score):
    assert blog.judge(ROW, completion) == (status, score)


@pytest.mark.parametrize(
    ("completion", "for_order", "for_score"),
    [
        # Touching events overlap for the reward, though not for the evaluator.
        (answer(ART, BAND, CHOIR, DRILL), 20.0, (180 + 85) / 385 * 70),
        # Both events of an overlapping pair are dropped, and the rest is paid.
        (answer(BAND, CHESS, CHOIR), 20.0, 180 / 385 * 70),
        (answer(BAND, CHESS), 20.0, 0.0),
        # Events inside the reasoning are read.
        (answer(CHOIR, think=f"<think>{xml(ART)}</think>"), 20.0, 240 / 385 * 70),
        # Invented events earn the points for order.
        (answer(["X", "01:00", "02:00"], ["Y", "02:00", "01:00"]), 20.0, 0.0),
        # Events that start together are not in order, and one event is not a schedule.
        (answer(["X", "01:00", "02:00"], ["Y", "01:00", "03:00"]), 0.0, 0.0),
        (answer(ART), 0.0, 0.0),
    ],
)
def test_the_published_rewards_pay_for_their_flaws(completion, for_order, for_score):
    paid = blog.rewards(ROW, completion)
    assert paid == {
        "reward_format": 10.0, "reward_sorted": for_order, "reward_score": for_score,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("completion", "points"),
    [
        (answer(ART), 10.0),
        (answer(ART) + " and more", 10.0),
        (answer(ART, think="<think>a</think>b</think> "), 10.0),
        # Whatever stands between the tags is accepted, as long as they come in order.
        (answer(ART).replace("<name>", "<name>\n<start>?</start>"), 10.0),
        (answer(ART, think=""), 0.0),
        (answer(ART, think="<think></think>"), 0.0),
        (answer(ART, think="\n<think>a</think>"), 0.0),
        (answer(ART, think="<think>a"), 0.0),
        (answer(["", "09:00", "10:00"]), 0.0),
        (answer(["Art", "9:00", "10:00"]), 0.0),
        (answer(["Art", "09:00 ", "10:00"]), 0.0),
        (answer(), 0.0),
        (answer(ART).replace("</event>", ""), 0.0),
    ],
)
def test_the_published_format(completion, points):
    assert blog.reward_format(ROW, completion) == points


MEGABYTE = 1_000_000
EVENT = "<event><name>Art</name><start>09:00</start><end>10:00</end></event>"
HOSTILE = {
    "unterminated answer": answer(ART).removesuffix("</schedule>") + EVENT * (MEGABYTE // 70),
    "pieces over and over": "<think>a</think>"
    + "<schedule><event><name>a</name><start>09:00</start>" * (MEGABYTE // 50),
    "blanks in an event": "<think>a</think><schedule><event>" + " " * MEGABYTE,
    "events that never close": "<think>a</think><schedule>" + "<event>\n<name>a" * (MEGABYTE // 15),
    "ends alone": "<think>" + "</think>" * (MEGABYTE // 8),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_megabyte_is_judged_in_linear_time(kind):
    for judge in (blog.judge, *blog.REWARDS.values()):
        assert within(0.1, lambda judge=judge: judge(ROW, HOSTILE[kind]))
