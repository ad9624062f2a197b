"""Settings that came later: their first value leaves keys and records as they were."""

import copy

from cli_helpers import compose

from sq.records import migrations, record


def test_key_is_what_it_was_before_a_setting_within_a_part():
    config, choices = compose("quantizer=brecq")
    assert (
        config["quantizer"]["learn"]["precision"]
        == config["quantizer"]["then"]["precision"]
        == "float32"
    )
    old = copy.deepcopy(config)
    del old["quantizer"]["learn"]["precision"], old["quantizer"]["then"]["precision"]
    assert record.key(old) == record.key(config)
    for stage in ("learn", "then"):
        assert record.key(
            compose("quantizer=brecq", f"quantizer.{stage}.precision=bfloat16")[0]
        ) != record.key(config)
    made = {"config": copy.deepcopy(old), "choices": choices}
    migrations.complete(made)
    assert made["config"] == config


def test_parts_without_the_setting_are_left():
    config, choices = compose("quantizer=eptq")
    assert config["quantizer"].get("then") is None
    made = {"config": copy.deepcopy(config), "choices": dict(choices)}
    migrations.complete(made)
    assert (made["config"], made["choices"]) == (config, choices)


def test_model_without_blocks_has_the_config_it_had():
    for name in ("brecq", "qdrop"):
        config, _ = compose(f"quantizer={name}")
        assert config["quantizer"]["named"] is None
        assert "blocks" not in config["model"]


def test_setting_of_one_choice_leaves_the_others():
    old, choices = compose("export=onnx")
    assert old["export"].pop("unsigned") is False
    made = {"config": copy.deepcopy(old), "choices": choices}
    migrations.complete(made)
    assert made["config"] == compose("export=onnx")[0]
    assert record.key(old) == record.key(made["config"])
    config, choices = compose("export=none")
    before = copy.deepcopy(migrations.SETTINGS)
    made = {"config": {k: v for k, v in config.items() if k != "export"}, "choices": {}}
    migrations.complete(made)
    assert made["config"] == config
    assert before == migrations.SETTINGS


def test_setting_that_some_networks_have():
    config, choices = compose("model=resnet18")
    assert config["model"]["reparameterize"] is True
    old = copy.deepcopy(config)
    del old["model"]["reparameterize"]
    assert record.key(old) == record.key(config)
    assert record.key(compose("model=resnet18", "model.reparameterize=false")[0]) != record.key(
        config
    )
    made = {"config": old, "choices": choices}
    migrations.complete(made)
    assert made["config"] == config
    other, choices = compose("model=resnet20")
    assert "reparameterize" not in other["model"]
    made = {"config": copy.deepcopy(other), "choices": choices}
    migrations.complete(made)
    assert made["config"] == other
