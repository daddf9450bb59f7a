"""The table of protocols: what each sets, what it leaves alone, and that publications follow their own."""

import pytest

from edc_ray import presets, specs
from edc_ray.config import ConfigError, Experiment, Sweep, override
from edc_ray.presets import PRESETS, protocols
from edc_ray.presets.protocols import PROTOCOLS, apply, name_of


@pytest.mark.parametrize(("family", "protocol"), [("edc", "edc"), ("rded", "rded"), ("sre2l", "sre2l")])
def test_a_publication_is_judged_under_its_own_protocol(family: str, protocol: str) -> None:
    rows = [name for name in PRESETS if name.startswith(f"{family}/") and name.count("/") == 2]
    assert len(rows) >= 9
    assert {name_of(presets.experiment(name)) for name in rows} == {protocol}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_sets_how_a_set_is_judged_and_nothing_else(name: str) -> None:
    base = override(presets.experiment("digits/ipc2"), {"evaluate.student": "vgg5_w16"})
    judged = apply(name, base)
    for section in ("dataset", "split", "squeeze", "statistics", "init", "recover", "quirks", "seed"):
        assert getattr(judged, section) == getattr(base, section)
    assert judged.evaluate.student == "vgg5_w16" and judged.evaluate.seeds == base.evaluate.seeds
    assert judged.relabel.flip is False, "digits do not flip"
    assert name_of(judged) == name and apply(name, judged) == judged
    odd = override(base, {"evaluate.lr": 0.5, "relabel.crop_min": 0.33, "evaluate.select": "best_val"})
    assert apply(name, odd) == judged, "nothing of the set's own recipe is left"


def test_what_the_field_says_of_each() -> None:
    """As published (method.md 5.3); CIFAR-10 at 10 images a class."""
    base = presets.experiment("edc/cifar10/ipc10")
    judged = {name: apply(name, base) for name in PROTOCOLS}
    found = {
        name: (e.evaluate.loss, e.evaluate.epochs, e.relabel.batch_size, len(protocols.labellers(e)))
        for name, e in judged.items()
    }
    assert found == {
        "edc": ("mse", 1000, 25, 8), "rded": ("kl", 300, 50, 1), "rd3": ("kl", 400, 50, 1),
        "sre2l": ("kl", 400, 128, 1), "hard": ("hard", 1000, 25, 0),
    }  # fmt: skip
    for name in ("rded", "rd3", "sre2l"):
        assert protocols.labellers(judged[name]) == ("resnet18",)
    assert judged["rd3"].evaluate.zeta == 1.0 and judged["rded"].evaluate.zeta == 2.0
    assert judged["hard"].relabel.mix == "none" and judged["edc"].evaluate.ce_weight == 0.025


def test_the_number_of_images_and_the_size_choose_the_published_recipe() -> None:
    batches = [
        apply("rded", override(presets.experiment("edc/cifar10/ipc10"), {"init.ipc": ipc})).relabel.batch_size
        for ipc in (1, 2, 10, 20, 50, 100)
    ]
    assert batches == [10, 10, 50, 50, 100, 100]
    own = {"dataset.name": "image_folder", "init.ipc": 10}
    sizes = {
        size: apply("edc", override(Experiment(), own | {"dataset.size_px": size})) for size in (32, 64, 224)
    }
    assert [(e.evaluate.epochs, e.relabel.batch_size) for e in sizes.values()] == [
        (1000, 25),
        (300, 100),
        (300, 100),
    ]
    assert sizes[224].relabel.randaugment_ops == 0 < sizes[64].relabel.randaugment_ops


def test_a_recipe_of_ones_own_is_no_protocol() -> None:
    base = apply("rded", presets.experiment("edc/cifar10/ipc10"))
    assert name_of(override(base, {"evaluate.seeds": [7], "evaluate.student": "wrn_16_2"})) == "rded"
    assert name_of(override(base, {"evaluate.epochs": 299})) == protocols.OWN


def test_unknown_names_are_refused() -> None:
    assert protocols.named("all") == tuple(PROTOCOLS) and protocols.named("rd3, edc,rd3") == ("rd3", "edc")
    for wrong in ("rdad", "", "edc,,hard"):
        with pytest.raises(ConfigError, match=r"legal: .*rded"):
            protocols.named(wrong)
    with pytest.raises(ConfigError, match="protocol = 'own'"):
        apply("own", Experiment())
    with pytest.raises(ConfigError, match="must be one of edc"):
        specs.with_changes(Sweep(), ["protocol=3"])


def test_a_file_names_a_protocol_and_its_own_fields_win() -> None:
    fields = {"protocol": "rd3", "init": {"ipc": 10}, "evaluate": {"epochs": 7}}
    _, found = specs.with_changes(Sweep(preset="digits/ipc2", experiment=fields), [])
    plain = apply("rd3", override(presets.experiment("digits/ipc2"), {"init.ipc": 10}))
    assert found == override(plain, {"evaluate.epochs": 7})
    _, line = specs.with_changes(Sweep(preset="digits/ipc2", experiment=fields), ["protocol=hard"])
    assert line.evaluate.loss == "hard" and line.evaluate.epochs == 7
    _, none = specs.with_changes(Sweep(preset="digits/ipc2", experiment=fields), ["protocol=null"])
    assert none.evaluate.loss == presets.experiment("digits/ipc2").evaluate.loss
