"""All symptoms. A new one is one decorated test in one of the three theme files."""

from __future__ import annotations

from pipeline.health import optimisation, policy, reward
from pipeline.health.symptom import Symptom

SYMPTOMS: tuple[Symptom, ...] = tuple(
    named
    for theme in (optimisation, policy, reward)
    for named in vars(theme).values()
    if isinstance(named, Symptom)
)
