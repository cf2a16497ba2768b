"""Does an answer hang on its reasoning? Of two scripted arms one reads what it wrote."""

import json

from scripted import Scripted

from data.prompts import schedule_xml
from data.rows import gold_answer
from data.solver import interval_optimum
from eval import thinking
from eval.answers.interventions import Intervention

ARMS = {
    "reader": {"trainer": "sft"},
    "knower": {"trainer": "sft"},
    "sloppy": {"trainer": "none", "eval": {"lenient": True}},
}


class Thinking(Scripted):
    """The base is silent. The others compute; ``reader`` answers what the reasoning leads to,
    ``knower`` the optimum whatever stands there, ``sloppy`` the same in tags of the wrong case."""

    def continued(self, rows, opened, asking):
        for one in opened:
            best = interval_optimum(rows[one.problem]["problem"])
            own = one.intervention == Intervention.KEPT or self.arm == "knower"
            end = "" if "</think>" in one.text else "</think>\n"
            schedule = schedule_xml(best if own else one.follows or ())
            if self.arm == "sloppy":
                schedule = schedule.replace("schedule>", "Schedule>")
            yield one.text + end + schedule


def test_changed_reasoning_costs_an_arm_that_reads_it_and_not_one_that_knows(world, monkeypatch):
    monkeypatch.setattr(thinking, "Asker", Thinking)
    monkeypatch.setattr(thinking, "model_inputs", lambda model: [])
    world.scripts["base"] = lambda row, way, rng: row["gold"]
    for arm in ARMS:
        world.scripts[arm] = lambda row, way, rng: gold_answer(row["problem"], "computed")
    recipe = world.evaluated(ARMS, {"arms": ["reader"]})
    thinking.run(recipe, force=False)
    found = json.loads(recipe.run.thinking.read_text())

    assert "interventions" not in found["base"]
    reader, knower = (found[arm]["interventions"] for arm in ("reader", "knower"))
    for change in ("cut", "exchanged"):
        assert reader[change]["cost"]["value"] == 1
        assert knower[change]["cost"]["value"] == 0
    assert found["sloppy"]["interventions"]["kept"]["optimal"]["value"] == 1, "read leniently"
    assert reader["altered"]["follows"]["value"] == 1
    assert knower["altered"]["follows"]["value"] == 0
    assert reader["kept"]["optimal"]["value"] == 1
    assert reader["kept"]["optimal"]["n"] == 40

    for arm, thinks in (("base", 0), ("reader", 1)):
        sizes = found[arm]["by_events"]
        assert set(sizes) <= {"8", "9", "10"}
        assert sum(of["problems"] for of in sizes.values()) == 40
        for of in sizes.values():
            shares = {key: of[key]["value"] for key in ("optimal", "traced", "sound")}
            assert shares == {"optimal": 1, "traced": thinks, "sound": thinks}
    # All are right; the base without a claim, so never by true reasoning.
    for arm, reasoned in (("base", 0), ("reader", 1)):
        for of_k in found[arm]["passes"].values():
            assert (of_k["pass"]["value"], of_k["cot_pass"]["value"]) == (1, reasoned)
            assert of_k["difference"]["value"] == reasoned - 1
    assert "reader" in recipe.run.thinking.with_suffix(".md").read_text()

    # Read strictly, the same answers in tags of the wrong case are none.
    strict = world.recipe({**ARMS, "sloppy": {"trainer": "none"}}, {"arms": ["reader"]})
    world.evaluate(strict)
    thinking.run(strict, force=False)
    found = json.loads(recipe.run.thinking.read_text())
    assert found["sloppy"]["interventions"]["kept"]["optimal"]["value"] == 0
