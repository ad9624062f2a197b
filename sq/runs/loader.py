"""Hydra's config loader with stricter checks of choices, sweepers and foreign code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra._internal import hydra as application
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from sq.config import resolvers, schema
from sq.config.schema import FAMILIES
from sq.core import foreign_code, paths
from sq.errors import SqError

CONF = str(paths.CONF)
SWEEPER = "hydra_plugins.sq_sweeper.Sweeper"  # of conf/config.yaml
# All code that composes configs imports this module, which makes the schema and the resolvers of
# YAML files known to Hydra.
schema.register()
resolvers.register()


@contextmanager
def installed() -> Iterator[None]:
    """Let Hydra compose configs with `Loader` within the block."""
    before = application.ConfigLoaderImpl
    application.ConfigLoaderImpl = Loader  # type: ignore[misc]  # Hydra has no setting for it
    try:
        yield
    finally:
        application.ConfigLoaderImpl = before  # type: ignore[misc]


class Loader(ConfigLoaderImpl):
    """Hydra's loader for groups with exactly one choice, and settings of swept choices.

    Hydra composes every command twice, the first time only to read `hydra.mode`. Here the command
    itself uses that config, which saves half the time.
    """

    # Name of the config, overrides and config of the composition for the mode.
    _composed_for_mode: tuple[str | None, list[str], DictConfig] | None = None

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Return the config with `overrides`; of a sweep, the part that its runs have in common.

        Raises
        ------
        SqError : a choice is no name; Hydra would import or call foreign code, see
            `sq.core.foreign_code`
        HydraException, OmegaConfBaseException : an override that Hydra refuses
        """
        parsed = _parsed(overrides)
        for override in parsed:
            self._check_choice(override)
        # A search path on the command line comes from the user, and replaces that of the file.
        if config_name is not None and all(
            override.key_or_group != foreign_code.SEARCH_PATH for override in parsed
        ):
            file = self.repository.load_config(config_name)
            if file is not None and isinstance(file.config, DictConfig):
                foreign_code.check_search_path(file.config)

        reused = self._reuse(config_name, overrides, parsed, run_mode) if from_shell else None
        deferred: set[str] = set()

        def load(remaining: list[str]) -> DictConfig:
            return super(Loader, self).load_configuration(
                config_name, remaining, run_mode, from_shell, validate_sweep_overrides
            )

        try:
            config = load(overrides) if reused is None else reused
        except ConfigCompositionException:
            # This config has default choices in place of swept ones, and may lack their settings.
            # The sweep applies those to each of its runs, which has its own choices.
            deferred = {
                str(override.input_line) for override in parsed if _is_setting_of_choice(override)
            }
            if run_mode != RunMode.MULTIRUN or not deferred:
                raise
            config = load([override for override in overrides if override not in deferred])
            of_hydra = {str(o.input_line) for o in parsed if o.is_hydra_override()}
            with open_dict(config.hydra):
                config.hydra.overrides.task = [o for o in overrides if o not in of_hydra]
        # Without validation, Hydra asks for the mode only, and errors would be lost.
        for_mode = run_mode == RunMode.MULTIRUN and not validate_sweep_overrides
        if run_mode == RunMode.MULTIRUN and not for_mode:
            _check_sweeper(config.hydra)
        foreign_code.check(config.hydra)
        if for_mode and not deferred:
            self._composed_for_mode = config_name, list(overrides), config
        return config

    def _reuse(
        self,
        config_name: str | None,
        overrides: list[str],
        parsed: list[Override],
        run_mode: RunMode,
    ) -> DictConfig | None:
        """Return the config composed to read the mode, if `overrides` lead to the same one.

        Raises
        ------
        ConfigCompositionException : a single run is given several values of a setting
        """
        if self._composed_for_mode is None:
            return None
        name, words, config = self._composed_for_mode
        self._composed_for_mode = None
        added = overrides[len(words) :]
        set_mode = f"hydra.mode={run_mode.name}"  # which Hydra adds if no file says it
        if name != config_name or overrides[: len(words)] != words or added not in ([], [set_mode]):
            return None
        if "???" in config.hydra.runtime.choices.values():
            return None  # a sweep may leave a choice to its runs, a single run may not
        self.validate_sweep_overrides_legal(parsed, run_mode, from_shell=True)
        if added:
            config.hydra.mode = run_mode
            config.hydra.overrides.hydra.append(set_mode)
        return config

    def _check_choice(self, override: Override) -> None:
        """Refuse a choice that is not a name: null, a number, a list."""
        group = override.key_or_group
        if override.is_sweep_override() or not (group in FAMILIES or group.startswith("hydra/")):
            return
        value = override.value()
        if isinstance(value, str) or (override.is_delete() and value is None):
            return
        options = self.get_group_options(group, results_filter=ObjectType.CONFIG)
        hint = f"there is no group {group}"
        if options:
            hint = f"choices: {', '.join(sorted(options))}"
        raise SqError(f"{override.input_line}: one choice is made, by its name; {hint}")


def other_sweeper(choice: str) -> str:
    """Return why a sweeper other than Hydra's basic one, which sq extends, is refused."""
    return (
        f"hydra/sweeper={choice}: runs are swept over listed values and leave records, not one "
        "number to be optimized; leave hydra/sweeper out (all: basic)"
    )


def _check_sweeper(hydra: DictConfig) -> None:
    """Refuse a sweeper other than sq's, and settings of Hydra's basic one that sq's lacks."""
    choice, sweeper = hydra.runtime.choices["hydra/sweeper"], hydra.sweeper
    if choice != "basic":
        raise SqError(other_sweeper(choice))
    if sweeper._target_ != SWEEPER:
        raise SqError(
            f"hydra.sweeper._target_={sweeper._target_}: sweeps are done by sq's own; leave it out"
        )
    if sweeper.max_batch_size is not None:
        raise SqError(
            f"hydra.sweeper.max_batch_size={sweeper.max_batch_size}: a sweep is not done in "
            "batches; hydra.launcher.processes (local) or array_parallelism (slurm) bounds the "
            "runs at a time"
        )


def _parsed(overrides: list[str]) -> list[Override]:
    """Return `overrides` parsed by Hydra, none if it cannot: Hydra itself reports that later."""
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException:
        return []


def _is_setting_of_choice(override: Override) -> bool:
    """Tell whether `override` sets a choice's setting, as ``grid.range=mse``, to one value."""
    family, _, setting = override.key_or_group.partition(".")
    return family in FAMILIES and bool(setting) and not override.is_sweep_override()
