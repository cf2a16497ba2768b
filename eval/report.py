"""Stage ``make report``: everything that was found, on one HTML page.

Writes ``runs/<run>/eval/report.html``, which needs no other file and no network
(``eval.show.page``), and ``report.files/training.png``. A section of the page whose content the run
does not have is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.common.errors import UserError, brief, run_main
from data.common.files import Stage, finished, read_jsonl, sha256, write_text
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import Run
from eval.answers.files import answered, way_of_asking
from eval.answers.judge import check_judged
from eval.show import page
from eval.show.charts import looks_of, write_png
from eval.show.panels import SHOWN_SIGNALS, training_panels
from eval.show.report_sheets import headline, report_sheets
from eval.show.results import read_result, standing_conclusion
from eval.show.showcase import choose_answers
from eval.show.tables import label
from rewards.verify import Status

REPORT_PAGE = "report.html"
#: Folder of the PNG and the manifest; no arm has this name.
REPORT_FILES = "report.files"


def run(recipe: Recipe, force: bool) -> None:
    """Write the page of a run that was evaluated, unless it is up to date."""
    run = recipe.run
    if not (finished(run.eval) and run.report.is_file()):
        raise UserError(f"{run.report} does not exist or is not finished; `make eval` writes it")
    report = read_result(run.report)
    arms = report["arms"]
    logs = {arm: run.log(arm) for arm in arms if run.log(arm).is_file()}
    judged = [a for a in arms if run.samples(a).is_file() and run.verdicts(a).is_file()]
    check_judged(run, judged)
    standing = standing_conclusion(run, arms)
    if standing is None and finished(run.elicitation.parent):
        print(
            "report: the conclusion is missing, or of other answers than these, so it is left out; "
            "`make eval` goes on with it",
            flush=True,
        )
    facts = {
        "base model": recipe.model,
        "seed": str(recipe.seed),
        **_asked(run, arms),
        "success": f"a proven {report['success']} schedule",
    }
    answers = [file for arm in judged for file in (run.samples(arm), run.verdicts(arm))]
    inputs = [run.report, run.split("test"), *answers, *logs.values()]
    settings = {"run": recipe.run_name, "facts": facts, "templates": sha256(page.TEMPLATES)}
    folder = run.eval / REPORT_FILES
    stage = Stage(folder, "report", settings, [*inputs, *([standing] if standing else [])])
    if not stage.begin_unless_done(force):
        return
    training = training_panels(
        {arm: [*_logged(path)] for arm, path in logs.items()}, looks_of(arms)
    )
    (folder / "training.png").unlink(missing_ok=True)
    if training:
        write_png(training, folder / "training.png")
    elicitation = read_result(standing) if standing else None
    sections = _sections(run, report, elicitation, facts, training, judged, recipe.seed)
    text = page.page_text(recipe.run_name, arms, list(sections))
    write_text(run.eval / REPORT_PAGE, text)
    stage.finish([f"../{REPORT_PAGE}", *(["training.png"] if training else [])])
    print(f"report: {run.eval / REPORT_PAGE}, {len(text) / 1e6:.1f} MB", flush=True)


def _sections(
    run: Run,
    report: Mapping[str, Any],
    elicitation: Mapping[str, Any] | None,
    facts: Mapping[str, str],
    training: Sequence[page.Panel],
    judged: Sequence[str],
    seed: int,
) -> Iterator[page.PageSection]:
    """The sections of the page in their order."""
    notes = [*report.get("notes", []), *(elicitation or {}).get("notes", [])]
    yield page.PageSection(
        "result",
        "",
        {
            "headline": headline(report),
            "elicitation": elicitation,
            "notes": list(dict.fromkeys(notes)),
            "facts": facts,
        },
    )
    yield page.passk_section(report)
    if elicitation:
        yield page.elicitation_section(elicitation, report["arms"])
    yield page.PageSection("answers", "Answers", {"report": report, "statuses": list(Status)})
    if training:
        yield page.training_section(training, report["arms"])
    if judged:
        asked = {row["id"]: row for row in read_split(run, "test")}
        tiers = {name: row["tier"] for name, row in asked.items()}
        rows = {arm: answered(run.samples(arm), asked) for arm in judged}
        yield page.samples_section(judged, choose_answers(rows, tiers, seed), asked)
    yield page.PageSection("tables", "Tables", {"sheets": list(report_sheets(report))})


def _asked(run: Run, arms: Iterable[str]) -> dict[str, str]:
    """How the arms were asked, as their samples say: the recipe may have changed since."""
    ways = {}
    for arm in arms:
        folder = run.samples(arm).parent
        if finished(folder):
            asking = way_of_asking(folder)
            ways[label(arm)] = f"T = {asking.temperature:g}, top-p = {asking.top_p:g}"
    different = list(dict.fromkeys(ways.values()))
    if len(different) > 1:
        different = [f"{arm}: {way}" for arm, way in ways.items()]
    return {"sampling": "; ".join(different)} if different else {}


def _logged(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a training's log.

    Raises:
        UserError: naming the line that cannot be drawn.
    """
    for number, row in read_jsonl(path):
        signals = [signal for signal, *_ in SHOWN_SIGNALS if row.get(signal) is not None]
        for key in ("step", *signals):
            value: Any = row.get(key)
            if type(value) not in (int, float) or not abs(value) < 1e100:
                raise UserError(
                    f'{path}:{number}: "{key}" must be a number, not {brief(value)}; delete the '
                    "line, or the file to leave the training out"
                )
        yield row


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
