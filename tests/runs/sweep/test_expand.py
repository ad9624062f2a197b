"""What a sweep expands to is what Hydra's own sweeper and composition make of the same command."""

import copy
import random

import hydra
import pytest
from cli_helpers import CONF
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf, open_dict

from sq.errors import SqError
from sq.runs import loader as own
from sq.runs.sweep import expand

GRAMMAR = [
    ["bits=3,4"],
    ["bits=4,3", "seed=2,1"],
    ["bits=choice(3,4)"],
    ["bits=choice(3)"],
    ["bits=range(3,5)"],
    ["seed=range(3)"],
    ["seed=range(start=5,stop=1,step=-2)"],
    ["bits=range(3,4,0.25)"],
    ["bits=range(1.5,3.5)"],
    ["bits=sort(4,2,3)"],
    ["bits=sort(choice(4,2,3),reverse=true)"],
    ["bits=sort(range(2,5),reverse=true)"],
    ["bits=tag(small,choice(3,4))"],
    ["bits=tag(a,b,range(3,5))"],
    ["bits=int(3.7,4.2)"],
    ["bits=int(choice(3.0,4.0))"],
    ["bits=float(range(2,4))"],
    ["bits=float('3.5')"],
    ["name=str(3,4)"],
    ["sensitivity.bits=int([3.0,4.0])"],
    ["fold=bool(0,1)"],
    ["name='a b','c,d'"],
    ['name="a","b\\"c"'],
    ["name=a\\,b,c"],
    ["name='3',4"],
    ["name='x=${seed}',y"],
    ["name=3 4,5"],
    ["quantizer=glob(*ptq)"],
    ["quantizer=glob([r*,o*],exclude=obq)", "bits=3,4"],
    ["sensitivity.bits=[2,3],[4]"],
    ["sensitivity.bits=sort([4,2])"],
    ["sensitivity.bits=choice([2,3],[4])"],
    ["batch_size=null,16"],
    ["++bits=3,4"],
    ["calibration.seed=${seed},7", "seed=1,2"],
    ["threads=null"],
    ["sensitivity=fisher,trace", "sensitivity.images=64"],
    ["sensitivity.images=64,128", "sensitivity=fisher,trace", "bits=3"],
    ["quantizer=gptq,sensiquant", "quantizer.solve.order='none'", "~quantizer.damp"],
]


@pytest.fixture(scope="module")
def composed():
    with own.installed(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        yield loader, loader.load_configuration("config", [], RunMode.MULTIRUN)


@pytest.fixture
def swept(composed):
    """Return Hydra's loader with ours in its place, and the master config of the sweep that words ask for."""
    loader, config = composed

    def ask(*words, params=None):
        master = copy.deepcopy(config)
        with open_dict(master):
            master.hydra.overrides.task = list(words)
            master.hydra.sweeper.params = params
            for word in words:
                if word.startswith("sweep.shard="):
                    master.sweep.shard = word.partition("=")[2]
        return loader, master

    return ask


def by_hydra(loader, master, folder, monkeypatch):
    """Return the overrides of each job that Hydra's own sweeper hands to its launcher."""
    # Hydra loads its plugins anew each time
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    batches = []

    class Launcher:
        def launch(self, batch, initial_job_idx):
            batches.extend(map(list, batch))
            return []

    # composes each job
    monkeypatch.setattr(BasicSweeper, "validate_batch_is_legal", lambda *_: None)
    sweeper = BasicSweeper(None, dict(master.hydra.sweeper.params or {}))
    sweeper.hydra_context = HydraContext(config_loader=loader, callbacks=Callbacks())
    sweeper.launcher = Launcher()
    with open_dict(master):
        master.hydra.sweep.dir = str(folder)
    sweeper.config = master
    sweeper.sweep(OmegaConf.to_container(master.hydra.overrides.task, resolve=False))
    return batches


@pytest.mark.parametrize("words", GRAMMAR, ids=" ".join)
def test_jobs_are_those_of_hydra(words, swept, tmp_path, monkeypatch):
    loader, master = swept(*words)
    jobs = expand.expand(loader, master)
    assert [job.overrides for job in jobs] == by_hydra(loader, master, tmp_path, monkeypatch)
    assert jobs[-1].config == expand.resolve(loader.load_sweep_config(master, jobs[-1].overrides))


@pytest.mark.parametrize(
    "params",
    [
        {"seed": "0,1,2", "bits": "4,3"},
        {"quantizer": "rtn,obq", "seed": 3},
        {"sensitivity.bits": "[4,8],[2]", "quantizer": "choice(rtn,obq)", "fold": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "words", [[], ["bits=2,3"], ["fold=false", "quantizer=gptq,rtn"]], ids=" ".join
)
def test_with_what_an_experiment_sweeps_over(words, params, swept, tmp_path, monkeypatch):
    loader, master = swept(*words, params=params)
    jobs = expand.expand(loader, master)
    assert [job.overrides for job in jobs] == by_hydra(loader, master, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "word",
    [
        "bits=shuffle(2,3,4)",
        "bits=shuffle(choice(2,3,4))",
        "bits=shuffle(range(2,5))",
        "bits=shuffle(sort(4,3,2))",
    ],
)
def test_shuffled_ones_are_the_same_in_any_order(word, swept):
    found = set()
    random.seed(0)
    for _ in range(10):
        found.add(tuple(job.overrides[0] for job in expand.expand(*swept(word))))
    assert {tuple(sorted(order)) for order in found} == {("bits=2", "bits=3", "bits=4")}
    assert len(found) > 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bits=interval(2,4)"], "bits=interval(2,4): an interval is no list of values"),
        (["bits=tag(a,interval(2,4))"], "an interval is no list of values"),
        (
            ["bits=range(2,4,0)"],
            "bits=range(2,4,0): start, stop and step are finite numbers, and step is not 0",
        ),
        (["bits=range(2,4,0.0)"], "step is not 0"),
        (["bits=range(0,inf)"], "finite"),
        (["bits=range(0,nan)"], "finite"),
        (["bits=range(4,2)"], "bits=range(4,2): no value"),
        (["bits=glob(*)"], "bits=glob(*): no value"),
        (["quantizer=glob(x*)"], "quantizer=glob(x*): no value"),
        (["bits=choice(2,choice(3,4))"], "a sweep within a sweep"),
        (["sweep.retry=all,none"], "sweep.retry=all,none: of the sweep as a whole"),
        (
            ["sweep.shard=1/2", "bits=shuffle(3,4)"],
            "sweep.shard=1/2 bits=shuffle(3,4): each process shuffles again",
        ),
        (["bits=range(1e12)"], "up to 1000000000000 runs"),
        (["seed=range(1" + 400 * "0" + ")"], "more than sweep.max_runs=1000"),
    ],
)
def test_what_has_no_list_of_values_is_refused(words, said, swept):
    with pytest.raises(SqError) as refused:
        expand.expand(*swept(*words), 1000)
    assert str(refused.value).startswith("nothing was run: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
