"""Where relative paths lead."""

import pytest

from sq.config.data_paths import find
from sq.errors import SqError


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with one file, named by SQ_DATA, and another working directory."""
    folder, cwd = tmp_path / "data", tmp_path / "cwd"
    for own in (folder / "weights", cwd):
        own.mkdir(parents=True)
    (folder / "weights" / "net.pth").write_text("")
    monkeypatch.setenv("SQ_DATA", str(folder))
    monkeypatch.chdir(cwd)
    return folder


def test_relative_path_is_found_in_the_data_folder(data):
    assert find("weights/net.pth", "model.weights") == data / "weights" / "net.pth"
    assert find("weights", "dataset.root") == data / "weights"


def test_data_folder_may_be_relative_itself(data, monkeypatch):
    monkeypatch.setenv("SQ_DATA", "../data")
    assert find("weights/net.pth", "model.weights").samefile(data / "weights" / "net.pth")


def test_absolute_path_is_taken_as_it_is(data, monkeypatch):
    monkeypatch.delenv("SQ_DATA")
    assert find(str(data / "weights"), "model.weights") == data / "weights"


def test_what_is_in_the_working_directory_comes_first(data, monkeypatch):
    monkeypatch.chdir(data)
    monkeypatch.setenv("SQ_DATA", "/nowhere")
    assert find("weights/net.pth", "model.weights").read_text() == ""


@pytest.mark.parametrize("value", [None, ""])
def test_variable_that_is_not_set(data, monkeypatch, value):
    monkeypatch.delenv("SQ_DATA") if value is None else monkeypatch.setenv("SQ_DATA", value)
    with pytest.raises(
        SqError, match=r"model\.weights=weights/net\.pth: .*SQ_DATA is not set: set SQ_DATA to"
    ):
        find("weights/net.pth", "model.weights")


def test_file_that_is_in_neither(data):
    with pytest.raises(
        SqError, match=r"dataset\.root=cifar10: neither .* nor in SQ_DATA=.*data: set SQ_DATA"
    ):
        find("cifar10", "dataset.root")


def test_absolute_path_that_leads_nowhere(data):
    with pytest.raises(SqError, match=r"model\.weights=/nowhere: there is no such file or folder"):
        find("/nowhere", "model.weights")
