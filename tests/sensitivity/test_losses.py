import math

import pytest
import torch
from tolerances import assert_within, relative

from sq.errors import SqError
from sq.sensitivity import losses
from sq.types.images import Batch, Objects


def batch(y):
    return Batch(torch.zeros(len(y), 1), y, [str(i) for i in range(len(y))])


def test_kl_is_its_definition():
    ours, theirs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    p, q = theirs.double().exp(), ours.double().exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    wanted = (p * (p.log() - q.log())).sum(1)
    # the logs, which are below 10, are off by as much
    assert_within(losses.kl(ours, theirs), wanted, 10 * relative(5, torch.float64))
    assert losses.kl(theirs, theirs).abs().max() < 1e-12


def test_cross_entropy_is_minus_the_log_of_the_share():
    outputs = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    wanted = torch.tensor([math.log(2), math.log(4)]).double()
    assert_within(
        losses.cross_entropy(outputs, torch.tensor([0, 1])),
        wanted,
        relative(2, outputs.dtype) * wanted,
    )


def test_labels_are_of_the_first_images():
    assert losses.labels(batch(torch.tensor([2, 0, -1])), 2, "fisher").tolist() == [2, 0]


def test_unlabelled_images_are_refused_with_what_needs_no_labels():
    with pytest.raises(
        SqError,
        match=r"sensitivity=fisher needs labels, and 1 of 3 .*"
        r"interaction \(sensitivity.variant=pairs\), kl, mask_kl, measured \(sensitivity.loss=kl\), label_free",
    ):
        losses.labels(batch(torch.tensor([2, 0, -1])), 3, "fisher")


def test_objects_are_no_labels():
    objects = [Objects(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool(), (4, 4))]
    with pytest.raises(SqError, match=r"sensitivity=trace needs one class an image.*label_free"):
        losses.labels(batch(objects), 1, "trace")


@pytest.mark.parametrize(
    "call", [lambda y: losses.kl(y, y), lambda y: losses.cross_entropy(y, torch.zeros(2).long())]
)
def test_outputs_that_are_no_logits_are_refused(call):
    with pytest.raises(SqError, match=r"returns \(2, 3, 4\), not logits"):
        call(torch.zeros(2, 3, 4))
