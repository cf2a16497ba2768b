"""Stage ``make report``: everything that was found, on one HTML page and in pictures.

Writes ``runs/<run>/eval/report.html``, which needs no other file and no network
(``eval.show.page``), and ``report.files/training.png`` and ``accuracy.png``. A section of the page
whose content the run does not have is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.common.errors import UserError, run_main, shown
from data.common.files import Stage, finished, read_jsonl, sha256, stage_facts, write_text
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, read_split
from data.run import Run
from eval.answers.files import answered, way_of_asking
from eval.answers.judge import check_judged
from eval.show import page
from eval.show.charts import looks_of, write_png
from eval.show.panels import SHOWN_SIGNALS, histogram_panels, training_panels
from eval.show.results import read_result, standing_conclusion
from eval.show.showcase import choose_answers
from eval.show.tables import label

REPORT_PAGE = "report.html"
#: Folder of the PNGs and the manifest; no arm has this name.
REPORT_FILES = "report.files"

Logs = Mapping[str, Sequence[Mapping[str, Any]]]


def run(recipe: Recipe, force: bool) -> None:
    """Write the page and the PNGs of a run that was evaluated, unless they are up to date."""
    run = recipe.run
    if not (finished(run.eval) and run.report.is_file()):
        raise UserError(f"{run.report} does not exist or is not finished; `make eval` writes it")
    report = read_result(run.report)
    arms = report["arms"]
    logs = {arm: run.log(arm) for arm in arms if run.log(arm).is_file()}
    judged = [a for a in arms if run.samples(a).is_file() and run.verdicts(a).is_file()]
    check_judged(recipe.run, judged)
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
    elicitation = read_result(standing) if standing else None
    read = {arm: list(_logged(path)) for arm, path in logs.items()}
    rows = read_split(run, "test")
    sections = [
        page.result_section(report, elicitation, facts),
        page.passk_section(report),
        page.elicitation_section(elicitation, arms) if elicitation else None,
        page.answers_section(report),
        page.training_section(read, arms),
        _samples(run, judged, rows, recipe.seed) if judged else None,
        page.tables_section(report),
    ]
    text = page.render(recipe.run_name, arms, [section for section in sections if section])
    pictures = _draw(folder, arms, read, elicitation)
    write_text(run.eval / REPORT_PAGE, text)
    stage.finish([f"../{REPORT_PAGE}", *pictures])
    size = len(text.encode(errors="replace")) / 1e6
    print(f"report: {run.eval / REPORT_PAGE}, {size:.1f} MB", flush=True)


def _asked(run: Run, arms: Iterable[str]) -> dict[str, str]:
    """How the arms were asked, as their samples say: the recipe may have changed since."""
    ways: dict[str, list[str]] = {}
    for arm in arms:
        folder = run.samples(arm).parent
        if finished(folder) and "asking" in stage_facts(folder):
            asking = way_of_asking(folder)
            way = f"T = {asking.temperature:g}, top-p = {asking.top_p:g}"
            ways.setdefault(way, []).append(label(arm))
    said = [f"{', '.join(by)}: {way}" for way, by in ways.items()] if len(ways) > 1 else [*ways]
    return {"sampling": "; ".join(said)} if said else {}


def _samples(run: Run, arms: Sequence[str], rows: Sequence[Row], seed: int) -> page.Section:
    asked = {row["id"]: row for row in rows}
    answers = {arm: answered(run.samples(arm), asked) for arm in arms}
    tiers = {name: row["tier"] for name, row in asked.items()}
    return page.samples_section(arms, choose_answers(answers, tiers, seed), asked)


def _logged(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a training's log.

    Raises:
        UserError: naming the line that cannot be drawn.
    """
    for number, row in read_jsonl(path):
        signals = [signal for signal, *_ in SHOWN_SIGNALS if row.get(signal) is not None]
        for key in ("step", *signals):
            value = row.get(key)
            if type(value) not in (int, float) or not abs(value) < 1e100:
                raise UserError(
                    f'{path}:{number}: "{key}" must be a number, not {shown(value)}; delete the '
                    "line, or the file to leave the training out"
                )
        yield row


def _draw(
    folder: Path, arms: Sequence[str], logs: Logs, elicitation: Mapping[str, Any] | None
) -> list[str]:
    """Draw the PNGs; returns their names."""
    for old in folder.glob("*.png"):
        old.unlink()  # an earlier run may have had more of them
    looks = looks_of(arms)
    tiers = elicitation["tiers"] if elicitation else {}
    histograms = [
        bars
        for tier, described in tiers.items()
        for bars in histogram_panels(described["histogram"], looks, f"{tier}: ")
    ]
    drawn = {"training.png": training_panels(logs, looks), "accuracy.png": histograms}
    for name, charts in drawn.items():
        if charts:
            write_png(charts, folder / name)
    return [name for name, charts in drawn.items() if charts]


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
