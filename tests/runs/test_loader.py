"""Hydra's loader as we use it: one choice a group, and settings that only the choices swept over have."""

import hydra
import pytest
from cli_helpers import CONF
from hydra._internal import hydra as application
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from sq.errors import SqError
from sq.runs import loader as own
from sq.runs.sweep import expand


def load(*words, mode=RunMode.MULTIRUN, **more):
    with own.installed(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return (
            GlobalHydra.instance()
            .config_loader()
            .load_configuration("config", [*words], mode, **more)
        )


def test_hydra_is_left_as_it_was():
    with own.installed():
        assert application.ConfigLoaderImpl is own.Loader
    assert application.ConfigLoaderImpl is ConfigLoaderImpl
    with pytest.raises(SqError), own.installed():
        own._check_sweeper(
            OmegaConf.create({"runtime": {"choices": {"hydra/sweeper": "x"}}, "sweeper": {}})
        )
    assert application.ConfigLoaderImpl is ConfigLoaderImpl


def test_a_setting_of_swept_choices_is_left_to_the_runs_and_not_lost():
    words = ["sensitivity=fisher,trace", "sensitivity.images=64", "bits=3"]
    found = load(*words, "hydra.job.name=x")
    assert found.hydra.overrides.task == words
    assert found.hydra.overrides.hydra == ["hydra.job.name=x"]
    assert found.hydra.job.name == "x"
    assert found.bits == 3
    assert "images" not in found.sensitivity


def test_what_hydra_composes_is_as_hydra_composes_it():
    words = [
        "quantizer=gptq",
        "quantizer.solve.order=act",
        "bits=3",
        "+calibration.new=1",
        "~sensitivity.bits",
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        wanted = (
            GlobalHydra.instance()
            .config_loader()
            .load_configuration("config", words, RunMode.MULTIRUN)
        )
    assert load(*words) == wanted
    assert expand.resolve(load(*words, mode=RunMode.RUN)) == expand.resolve(wanted)


def test_a_setting_of_a_single_run_is_not_left_out():
    with pytest.raises(ConfigCompositionException, match=r"sensitivity\.images"):
        load("sensitivity.images=64", mode=RunMode.RUN)


@pytest.mark.parametrize("mode", RunMode)
@pytest.mark.parametrize(
    "word", ["quantizer=null", "quantizer=3", "quantizer=true", "quantizer=[gptq,obq]", "~grid=3"]
)
def test_a_choice_is_a_name(word, mode):
    group = word.partition("=")[0].strip("~")
    with pytest.raises(SqError) as refused:
        load(word, mode=mode)
    assert str(refused.value).startswith(f"{word}: one choice is made, by its name; choices: ")
    assert {"quantizer": "gptq", "grid": "uniform"}[group] in str(refused.value)


def test_a_choice_of_hydra_is_one_too():
    with pytest.raises(
        SqError,
        match="hydra/launcher=null: one choice is made, by its name; choices: basic, local, slurm",
    ):
        load("hydra/launcher=null")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hydra.sweeper.max_batch_size=2", "a sweep is not done in batches"),
        (
            "hydra.sweeper._target_=hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
            "sq's own",
        ),
    ],
)
def test_another_sweeper_is_refused_in_a_sweep_alone(word, said):
    with pytest.raises(SqError, match=said):
        load(word)
    assert load(word, mode=RunMode.RUN)


def test_a_sweeper_that_is_installed_is_refused_by_its_name(tmp_path):
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(
        group="hydra/sweeper", name="installed", node={"_target_": "x.Y", "direction": "minimize"}
    )
    try:
        with pytest.raises(SqError, match=r"hydra/sweeper=installed: .*\(all: basic\)"):
            load("hydra/sweeper=installed", "bits=3,4")
    finally:
        del store.repo["hydra"]["sweeper"]["installed.yaml"]


def test_asking_for_the_mode_alone_refuses_nothing():
    """Hydra takes an error there for a single run."""
    assert load("hydra.sweeper.max_batch_size=2", validate_sweep_overrides=False)


def composed_twice(words, mode, added=()):
    """Return what a command gets, whose mode Hydra asks for first."""
    with own.installed(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        loader.load_configuration(
            "config", [*words], RunMode.MULTIRUN, validate_sweep_overrides=False
        )
        return loader.load_configuration("config", [*words, *added], mode)


@pytest.mark.parametrize(
    ("words", "mode", "added"),
    [
        (["bits=3", "quantizer=obq"], RunMode.RUN, ["hydra.mode=RUN"]),
        (["bits=3", "hydra.mode=RUN"], RunMode.RUN, []),
        (["bits=3,4", "grid=uniform,pot"], RunMode.MULTIRUN, ["hydra.mode=MULTIRUN"]),
        (["bits=3", "hydra.job.name=x"], RunMode.MULTIRUN, ["hydra.mode=MULTIRUN"]),
        (["sensitivity=fisher,trace", "sensitivity.images=8"], RunMode.MULTIRUN, []),
    ],
)
def test_a_command_gets_what_one_composition_gives(words, mode, added):
    wanted = load(*words, *added, mode=mode)
    got = composed_twice(words, mode, added)
    assert got == wanted
    assert list(got.hydra.overrides.hydra) == list(wanted.hydra.overrides.hydra)
    assert type(got.hydra.mode) is type(wanted.hydra.mode)


def test_files_are_read_once_for_a_command(monkeypatch):
    composed = []
    compose = ConfigLoaderImpl._compose_config_from_defaults_list
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "_compose_config_from_defaults_list",
        lambda *a, **k: composed.append(a) or compose(*a, **k),
    )
    composed_twice(["bits=3"], RunMode.RUN, ["hydra.mode=RUN"])
    assert len(composed) == 1
    composed_twice(["bits=3"], RunMode.RUN, ["bits=4"])
    assert len(composed) == 3


def test_a_single_run_refuses_several_values_after_its_mode_was_asked_for():
    with pytest.raises(ConfigCompositionException, match="Ambiguous value"):
        composed_twice(["bits=3,4"], RunMode.RUN)
