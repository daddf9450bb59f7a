"""What `edc-ray diagnose` and `edc-ray apply` found about the winner, as far as it is in the store."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from edc_ray import pipeline
from edc_ray.report.section import Section
from edc_ray.report.trials import Trials

FOLDERS = ("diagnoses", "applications")
NONE = "None in the store: `edc-ray diagnose` and `edc-ray apply` make them; then `edc-ray report` again."


def figures(trials: Trials) -> Section:
    """Their pictures, and what must be known of each; the numbers stay in the files beside those.

    The winner's, and those of the same condensed again on fit + val, which are read on test.
    """
    claim, store = trials.claim, trials.claim.store
    best = claim.experiment(claim.best)
    winner = {pipeline.tasks(each, "recover")[-1].key for each in (best, pipeline.refitted(best))}
    pictures, captions = dict[str, bytes](), dict[str, list[str]]()
    for folder in FOLDERS:
        for stem in sorted(each.base_name[:-5] for each in store.listed(folder) if each.extension == "json"):
            told, picture = (store.get(f"{folder}/{stem}.{ending}") for ending in ("json", "png"))
            facts = json.loads(told or b"{}")
            if picture and facts.get("recover") in winner:
                numbers = f"{stem.rpartition('-')[0]}: numbers in {store.path(folder, f'{stem}.parquet')}"
                pictures[stem], captions[stem] = picture, [numbers, *_known(facts)]
    text = () if pictures else (NONE,)
    return Section("Diagnostics and applications", text, pictures=pictures, captions=captions)


def _known(facts: Mapping[str, Any]) -> Iterator[str]:
    """What was judged, notes, what was seen, and what the paper says."""
    if "split" in facts:
        seeds = ", ".join(map(str, facts["seeds"]))
        yield f"accuracy on {facts['split']} ({facts['judged']} images), seeds {seeds}"
    yield from (f"note: {note}" for note in facts.get("notes", []))
    for look in facts.get("looks", []):
        yield from (f"note: {note}" for note in look.get("notes", []))
        yield from look.get("seen", [])
    if "paper" in facts:
        yield f"the paper: {facts['paper']}"
