"""The share of weights that sq quantizes, over network families of timm and torchvision.

python -m sq.bench.coverage [NAME ...]

Networks are built with random weights: what is quantized depends on the structure alone. Without
names, all of `NETWORKS` are built and `results/coverage` is written again, in a few minutes on two
cores.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sq.core import closed_pipe
from sq.core.files import write_text
from sq.core.progress import out, track
from sq.network import geometry, plain_layers, tracing, weight_coverage
from sq.network.reparameterize import apply as fused
from sq.network.weight_coverage import Coverage
from sq.runtime import torch_setup
from sq.types.problem import Model

FOLDER = Path("results/coverage")
# Share of a network's weights; where less is quantized, the main reason must be in `ARITHMETIC`.
MIN_SHARE = 0.95
# Reasons that no rewriting can change: inputs are multiplied by something else than a weight, or
# not at all.
ARITHMETIC = (
    weight_coverage.RECURRENT,
    weight_coverage.LOOKED_UP,
    weight_coverage.ADDED,
    weight_coverage.OUTSIDE,
    weight_coverage.TRANSPOSED,
)


@dataclass(frozen=True)
class Network:
    """A network to measure, and how it is built."""

    family: str
    name: str  # in its library
    side: int = 64  # of an image, in pixels
    library: str = "timm"
    settings: dict[str, Any] = field(default_factory=dict)  # of its constructor


@dataclass(frozen=True)
class Measured:
    """A network's parameters, and which of them are quantized."""

    network: Network
    parameters: int
    coverage: Coverage
    unaccounted: int  # weights neither quantized nor listed
    modules: int  # rewritten as plain layers


def _timm(names: str, side: int = 64) -> list[Network]:
    """Return networks of timm from a text of ``family:name``, separated by blanks."""
    networks = []
    for pair in names.split():
        family, name = pair.split(":")
        networks.append(Network(family, name, side))
    return networks


def _torchvision(names: str, side: int = 64, **settings: Any) -> list[Network]:
    """Return networks of torchvision from a text of ``family:name``, separated by blanks."""
    networks = _timm(names, side)
    return [replace(network, library="torchvision", settings=settings) for network in networks]


NETWORKS = [
    *_timm(
        "ResNet:resnet18 ResNet-D:resnet26d ResNeXt:resnext26ts SE-ResNet:seresnet18 "
        "Res2Net:res2net50_14w_8s SKNet:skresnet18 ResNeSt:resnest14d ECA-ResNet:ecaresnet26t "
        "RegNet:regnetx_002 RegNet-Y:regnety_002 VGG:vgg11 DenseNet:densenet121 DPN:dpn48b "
        "DLA:dla46_c CSPNet:cspresnet50 VoVNet:ese_vovnet19b_slim SelecSLS:selecsls42 "
        "HRNet:hrnet_w18_small HGNet:hgnetv2_b0 TResNet:tresnet_m GENet:gernet_s"
    ),
    *_timm(
        "MobileNetV1:mobilenetv1_100 MobileNetV2:mobilenetv2_050 "
        "MobileNetV3:mobilenetv3_small_050 MobileNetV4:mobilenetv4_conv_small LCNet:lcnet_050 "
        "GhostNet:ghostnet_050 GhostNetV2:ghostnetv2_100 EfficientNet:efficientnet_b0 "
        "EfficientNet-Lite:tf_efficientnet_lite0 EfficientNetV2:tf_efficientnetv2_b0 "
        "MixNet:mixnet_s MnasNet:mnasnet_small FBNet:fbnetc_100 SPNASNet:spnasnet_100 "
        "TinyNet:tinynet_e HardCoRe-NAS:hardcorenas_a ReXNet:rexnet_100 "
        "CondConv:tf_efficientnet_cc_b0_4e FasterNet:fasternet_t0 StarNet:starnet_s1 "
        "Xception:legacy_xception Inception:inception_v3",
        96,
    ),
    *_timm(
        "RepVGG:repvgg_a0 MobileOne:mobileone_s0 RepGhost:repghostnet_050 FastViT:fastvit_t8 "
        "RepViT:repvit_m0_9"
    ),
    *_timm(
        "BiT:resnetv2_50x1_bit NFNet:nfnet_l0 NFNet-F:dm_nfnet_f0 NF-ResNet:nf_resnet50 "
        "ResNetV2:resnetv2_18"
    ),
    *_timm("BoTNet:botnet26t_256 Halo:halonet26t Lambda:lambda_resnet26t", 256),
    *_timm(
        "ConvNeXt:convnext_atto ConvNeXtV2:convnextv2_atto InceptionNeXt:inception_next_atto "
        "EdgeNeXt:edgenext_xx_small PoolFormer:poolformer_s12 CAFormer:caformer_s18 "
        "MambaOut:mambaout_femto RDNet:rdnet_tiny FocalNet:focalnet_tiny_srf "
        "EfficientFormerV2:efficientformerv2_s0 EfficientViT-MIT:efficientvit_b0 PVTv2:pvt_v2_b0 "
        "MViTv2:mvitv2_tiny VisFormer:visformer_tiny MobileViT:mobilevit_xxs "
        "MobileViTV2:mobilevitv2_050 SHViT:shvit_s1 NextViT:nextvit_small "
        "SwiftFormer:swiftformer_xs",
        224,
    ),
    *_timm(
        "ViT:vit_tiny_patch16_224 DeiT:deit_tiny_distilled_patch16_224 CaiT:cait_xxs24_224 "
        "ConViT:convit_tiny BEiT:beit_base_patch16_224 EVA:eva02_tiny_patch14_224 "
        "Swin:swin_tiny_patch4_window7_224 SwinV2:swinv2_cr_tiny_ns_224 PiT:pit_ti_224 "
        "LeViT:levit_128s CoaT:coat_tiny XCiT:xcit_nano_12_p16_224 Twins:twins_svt_small "
        "VOLO:volo_d1_224 TNT:tnt_s_legacy_patch16_224 CrossViT:crossvit_tiny_240 NesT:nest_tiny "
        "TinyViT:tiny_vit_5m_224 GCViT:gcvit_xxtiny DaViT:davit_tiny MaxViT:maxvit_tiny_tf_224 "
        "CoAtNet:coatnet_nano_rw_224 Hiera:hiera_tiny_224 Mixer:mixer_s32_224 "
        "ResMLP:resmlp_12_224 gMLP:gmlp_s16_224 Sequencer:sequencer2d_s "
        "ViT-relpos:vit_relpos_small_patch16_224 EfficientViT-MSRA:efficientvit_m0 "
        "ViTamin:vitamin_small_224",
        224,
    ),
    *_timm("SwinV2-orig:swinv2_tiny_window8_256", 256),
    *_torchvision(
        "AlexNet:alexnet VGG:vgg11_bn ResNet:resnet18 SqueezeNet:squeezenet1_1 "
        "DenseNet:densenet121 Inception:inception_v3 GoogLeNet:googlenet "
        "ShuffleNetV2:shufflenet_v2_x0_5 MobileNetV2:mobilenet_v2 MobileNetV3:mobilenet_v3_small "
        "MNASNet:mnasnet0_5 EfficientNet:efficientnet_b0 RegNet:regnet_y_400mf "
        "ConvNeXt:convnext_tiny",
        96,
    ),
    *_torchvision("ViT:vit_b_32 Swin:swin_t SwinV2:swin_v2_t MaxViT:maxvit_t", 224),
    *_torchvision(
        "DeepLabV3:deeplabv3_mobilenet_v3_large DeepLabV3:deeplabv3_resnet50 FCN:fcn_resnet50 "
        "LR-ASPP:lraspp_mobilenet_v3_large",
        weights_backbone=None,
    ),
    *_torchvision(
        "RetinaNet:retinanet_resnet50_fpn FCOS:fcos_resnet50_fpn "
        "FasterRCNN:fasterrcnn_mobilenet_v3_large_320_fpn FasterRCNN:fasterrcnn_resnet50_fpn "
        "MaskRCNN:maskrcnn_resnet50_fpn",
        weights_backbone=None,
        min_size=64,
        max_size=64,
    ),
    *_torchvision("SSD:ssd300_vgg16 SSDlite:ssdlite320_mobilenet_v3_large", weights_backbone=None),
]
# Settings that leave out auxiliary classifiers of training, and special initial weights.
WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": False}
AUXILIARY = ("inception_v3", "googlenet")  # networks that have them


def build(network: Network) -> nn.Module:
    """Return a network with random weights, in eval mode."""
    torch_setup.import_torchvision()
    import timm
    from torchvision import models

    torch.manual_seed(0)
    if network.library == "timm":
        return timm.create_model(network.name, pretrained=False, **network.settings).eval()
    settings = dict(network.settings)
    if network.name in AUXILIARY:
        settings |= WITHOUT_AUXILIARY
    return models.get_model(network.name, weights=None, **settings).eval()


def measure(network: Network) -> Measured:
    """Return which weights of a network would be quantized, found out as in a run."""
    net = build(network).requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, network.side, network.side, generator=generator)
    net = fused(net, x, "reparameterize=False")
    layers, skipped = geometry.find(net)
    model = Model(net, layers, tuple(x.shape[1:]), "", _no_image, skipped)
    model = plain_layers.rewrite_model(model, x)
    model = tracing.trace(model, x)
    covered = weight_coverage.measure(model.net, model.layers, x, rewritten=model.rewritten)
    return Measured(
        network, parameters, covered, _unaccounted(model, covered), len(model.rewritten)
    )


def _no_image(image: Any, resized: Any = None) -> Tensor:
    raise AssertionError("no image is read here")


def _unaccounted(model: Model, covered: Coverage) -> int:
    """Count the weights that are neither quantized nor listed, from the network's parameters."""
    tensors = dict(model.net.named_parameters(remove_duplicate=False))
    tensors |= model.net.state_dict(keep_vars=True)
    accounted = {id(layer.module.weight) for layer in model.layers}
    accounted |= {id(tensors[part.name]) for part in covered.left_out}
    count = 0
    for parameter in model.net.parameters():
        if parameter.ndim > 1 and id(parameter) not in accounted:
            count += parameter.numel()
    return count


HEAD = (
    "library",
    "family",
    "network",
    "parameters",
    "weights",
    "quantized %",
    "listed %",
    "unaccounted",
    "rewritten",
    "left out, by reason",
)


def cells(measured: Measured) -> tuple[str, ...]:
    """Return a line of the table, see `HEAD`."""
    network, covered = measured.network, measured.coverage
    reasons = [
        f"{weight_coverage.percent(share)} {reason}" for reason, share in covered.reasons().items()
    ]
    listed = sum(part.share for part in covered.left_out)
    return (
        network.library,
        network.family,
        network.name,
        str(measured.parameters),
        str(covered.weights),
        _number(covered.share),
        _number(listed),
        str(measured.unaccounted),
        str(measured.modules),
        "; ".join(reasons) or "-",
    )


def _number(share: float) -> str:
    """Return a share in percent, without the sign."""
    return weight_coverage.percent(share).removesuffix(" %")


def summary(networks: list[Measured]) -> str:
    """Return the median share in words, and the networks below `MIN_SHARE`."""
    shares = [measured.coverage.share for measured in networks]
    low = []
    for measured, share in zip(networks, shares, strict=True):
        if share < MIN_SHARE:
            network = measured.network
            low.append(f"{network.library} {network.name} ({weight_coverage.percent(share)})")
    median = weight_coverage.percent(statistics.median(shares))
    return (
        f"{len(shares)} networks: median {median} of the weights quantized; "
        f"below {MIN_SHARE:.0%}: {', '.join(low) or 'none'}"
    )


def markdown(networks: list[Measured]) -> str:
    """Return the table in Markdown, with its summary."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    lines += [f"| {' | '.join(cells(measured))} |" for measured in networks]
    text = (
        "Weights: numbers in parameters and stored buffers of two or more axes, "
        "after branches are fused. "
        "Rewritten: modules that are plain layers now. "
        "Made by `python -m sq.bench.coverage`.\n"
    )
    return "\n".join([summary(networks) + ".", "", *lines, "", text])


def comma_separated(networks: list[Measured]) -> str:
    """Return the table as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEAD)
    writer.writerows(map(cells, networks))
    return stream.getvalue()


@closed_pipe.quiet
def main() -> None:
    """Measure all networks, or those named, and write or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="of networks; without: all, and the table is written",
    )
    chosen = set(parser.parse_args().names)
    unknown = chosen - {network.name for network in NETWORKS}
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}; see NETWORKS in {__file__}")
    networks = [network for network in NETWORKS if not chosen or network.name in chosen]
    torch_setup.import_torch()
    table = [measure(network) for network in track(networks, "coverage")]
    out.print(markdown(table), soft_wrap=True)
    if not chosen:
        write_text(FOLDER / "table.md", markdown(table))
        write_text(FOLDER / "table.csv", comma_separated(table))


if __name__ == "__main__":
    main()
