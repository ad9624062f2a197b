"""Networks as ONNX models, before anything in them is quantized."""

import pytest
import torch
from torch import nn
from twin_networks import images, twins

from sq.export import onnx_export, onnx_session

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def shape(value):
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_networks_that_change_their_input_are_exported_as_those_that_do_not():
    x = images(5)
    for net in twins():
        model = onnx_export.exported(net, x[:2])
        onnx.checker.check_model(model, full_check=True)
        assert [(value.name, shape(value)) for value in model.graph.input] == [
            ("images", ["batch", 3, 8, 8])
        ]
        assert [(value.name, shape(value)) for value in model.graph.output] == [
            ("outputs", ["batch", 4])
        ]
        assert not net._forward_pre_hooks
        with torch.no_grad():
            wanted = net(x.clone())
        torch.testing.assert_close(
            onnx_session.Session(model.SerializeToString())(x), wanted, rtol=1e-5, atol=1e-6
        )


def test_axes_that_follow_from_the_axis_of_images_are_named_by_it():
    class Views(nn.Module):
        def forward(self, x):
            return torch.cat([x, 2 * x]).relu()

    model = onnx_export.exported(Views().eval(), torch.randn(2, 3))
    assert shape(model.graph.input[0]) == ["batch", 3]
    assert shape(model.graph.output[0]) == ["2*batch", 3]
