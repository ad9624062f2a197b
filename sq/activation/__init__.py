"""Activations: ``quantize(net, names, x, bits_of) -> {layer: Grid}``, grids of layer inputs, one a tensor."""
