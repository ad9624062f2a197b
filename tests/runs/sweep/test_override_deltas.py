"""Settings put together from their single changes are what Hydra makes of them applied one after the other."""

import itertools

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sq.runs.sweep.expand import OverrideDeltas, plain

CONFIG = """
bits: 4.0
seed: 0
batch: null
calibration: {seed: "${seed}", images: 32, size: "${batch}"}
quantizer: {damp: 0.01, solve: {order: act, levels: [1, 2]}}
where: "${oc.env:HOME}/x"
"""
WORDS = [
    "bits=3.5",
    "seed=7",
    "batch=16",
    "calibration.images=64",
    "quantizer.solve.order=none",
    "quantizer.damp=0.1",
]
HARD = [
    "calibration.seed=5",
    "quantizer.solve={order: x}",
    "~quantizer.damp",
    "calibration.size=${seed}",
    "seed=8",
    "bits=4.0",
]


def overrides(*words):
    return OverridesParser.create().parse_overrides(list(words))


def applied(config, own):
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    whole = OmegaConf.create(config)
    ConfigLoaderImpl._apply_overrides_to_config(own, whole)
    return plain(whole)


@pytest.mark.parametrize(
    "config", [CONFIG, CONFIG + "hidden: ${${name}}\nname: seed\n"], ids=["simple", "nested"]
)
@pytest.mark.parametrize(
    "shared", [(), ("calibration.images=48",), ("seed=3", "quantizer.damp=0.2")], ids=len
)
def test_together_is_one_after_the_other(config, shared):
    changes = OverrideDeltas(OmegaConf.create(config), overrides(*shared))
    for words in itertools.permutations(WORDS + HARD, 2):
        every = overrides(*shared, *words)
        assert changes.combined(every) == applied(config, every), words


def test_three_at_a_time_and_nothing_left_behind():
    changes = OverrideDeltas(OmegaConf.create(CONFIG), [])
    before = changes.combined([])
    for words in itertools.combinations(WORDS + HARD, 3):
        assert changes.combined(overrides(*words)) == applied(CONFIG, overrides(*words)), words
    assert changes.combined([]) == before == plain(OmegaConf.create(CONFIG))
