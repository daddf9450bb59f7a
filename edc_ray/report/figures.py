"""What `edc-ray diagnose` and `edc-ray apply` found about the winner, as far as it is in the store."""

import json

from edc_ray import pipeline
from edc_ray.report.section import Section
from edc_ray.report.trials import Trials

FOLDERS = ("diagnoses", "applications")
NONE = "None in the store: `edc-ray diagnose` and `edc-ray apply` make them; then `edc-ray report` again."


def figures(trials: Trials) -> Section:
    """Their pictures; the numbers stay in the files beside those."""
    claim, store = trials.claim, trials.claim.store
    winner = pipeline.tasks(claim.experiment(claim.best), "recover")[-1].key
    text, pictures = list[str](), dict[str, bytes]()
    for folder in FOLDERS:
        for stem in sorted(each.base_name[:-5] for each in store.listed(folder) if each.extension == "json"):
            told, picture = (store.get(f"{folder}/{stem}.{ending}") for ending in ("json", "png"))
            facts = json.loads(told or b"{}")
            if picture and facts.get("recover") == winner:
                text.append(f"{stem.rpartition('-')[0]}: numbers in {store.path(folder, f'{stem}.parquet')}")
                text += [line for look in facts.get("looks", []) for line in look.get("seen", [])]
                pictures[stem] = picture
    return Section("Diagnostics and applications", text or [NONE], pictures=pictures)
