import hashlib
import os
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

from sq.errors import SqError
from sq.model import ultralytics_hub


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def path(folder):
    # A network pickled whole.
    torch.save({"model": nn.Linear(1, 1)}, folder / "net.pt")
    return folder / "net.pt"


def test_average_of_training_goes_before_the_network(path):
    torch.save({"model": nn.Linear(2, 3), "ema": nn.Linear(4, 5)}, path)
    assert {n: tuple(t.shape) for n, t in ultralytics_hub.tensors(path).items()} == {
        "weight": (5, 4),
        "bias": (5,),
    }


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.BatchNorm1d(3, affine=False)
        self.register_buffer("kept", torch.arange(6).view(2, 3).T)
        self.register_buffer("passing", torch.zeros(1), persistent=False)
        self.register_parameter("none", None)
        self.inner = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1, bias=False)])


def test_names_are_those_of_the_state_dict(path):
    net = Counted()
    torch.save({"model": net}, path)
    found, wanted = ultralytics_hub.tensors(path), net.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


class Trap:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def spring(path):
    os.mkdir(path)


def damaged(path):
    path.write_bytes(path.read_bytes()[:-1000])


def a_page(path):
    path.write_text("<html>not found</html>")


def no_network(path):
    torch.save({"model": None, "epoch": 3}, path)


def a_list(path):
    torch.save([nn.Linear(1, 1)], path)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (damaged, "cannot be read as published weights"),
        (a_page, "cannot be read as published weights"),
        (no_network, "holds no network under 'ema' or 'model'"),
        (a_list, "holds no network under 'ema' or 'model'"),
    ],
)
def test_file_that_holds_no_network(path, write, says):
    write(path)
    with pytest.raises(SqError, match=says) as caught:
        ultralytics_hub.load_published(nn.Linear(1, 1), "net")
    assert str(caught.value).startswith(f"{path} ")
    assert str(caught.value).endswith("delete it, to fetch it again")
    assert "\n" not in str(caught.value)


def test_weights_fill_the_network_and_widen(path):
    net = nn.Linear(1, 1)
    torch.save({"model": nn.Linear(1, 1).half()}, path)
    assert ultralytics_hub.load_published(net, "net") == (
        hashlib.sha256(path.read_bytes()).hexdigest(),
        (),
    )
    assert net.weight.dtype == torch.float32
    assert torch.equal(net.weight, ultralytics_hub.tensors(path)["weight"].float())


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ({0: "cat", 1: "dog"}, ("cat", "dog")),
        ({1: "dog", 0: "cat"}, ("cat", "dog")),
        (["cat", "dog"], ("cat", "dog")),
        ({1: "cat", 2: "dog"}, ()),
        ([1, 2], ()),
        ("cat", ()),
    ],
)
def test_names_of_classes_are_in_the_order_of_outputs(names, wanted, path):
    net = nn.Linear(1, 1)
    net.names = names
    torch.save({"model": net}, path)
    assert ultralytics_hub.load_published(nn.Linear(1, 1), "net")[1] == wanted


def test_code_in_a_published_file_is_not_run(path):
    sprung = path.with_name("sprung")
    torch.save({"model": nn.Linear(1, 1), "trap": Trap(spring, str(sprung))}, path)
    assert ultralytics_hub.tensors(path).keys() == {"weight", "bias"}
    torch.save({"model": nn.Linear(1, 1), "trap": Trap(os.mkdir, str(sprung))}, path)
    with pytest.raises(
        SqError, match=r"cannot be read .*GLOBAL \w+\.mkdir whose module \w+ is blocked"
    ):
        ultralytics_hub.tensors(path)
    torch.save({"model": nn.Linear(1, 1), "trap": Trap(partial(spring, str(sprung)))}, path)
    with pytest.raises(SqError, match=r"cannot be read .*Trying to call reduce"):
        ultralytics_hub.tensors(path)
    assert not sprung.exists()


class Release(BaseHTTPRequestHandler):
    files: dict = {}  # noqa: RUF012

    def do_GET(self):
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def release(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Release) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(ultralytics_hub, "RELEASE", f"http://127.0.0.1:{server.server_port}/v")
        yield server
        server.shutdown()


def test_published_file_is_fetched_once(release, path, monkeypatch):
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setitem(Release.files, "/v/net.pt", content)
    assert ultralytics_hub.fetch("net.pt") == path
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.delitem(Release.files, "/v/net.pt")
    assert ultralytics_hub.fetch("net.pt") == path


def test_published_file_that_is_not_there(release, folder):
    with pytest.raises(
        SqError, match=r"model\.weights=null: .*net\.pt cannot be fetched \(HTTP Error 404"
    ):
        ultralytics_hub.load_published(nn.Linear(1, 1), "net")
    assert list(folder.iterdir()) == []
