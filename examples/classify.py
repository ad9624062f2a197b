"""Classify an image with a file of export=onnx: python classify.py NETWORK.onnx IMAGE. No sq, no torch."""

import json
import sys

import numpy as np
import onnxruntime as ort
from PIL import Image

network = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
told = json.loads(network.get_modelmeta().custom_metadata_map["sq.image"])
channels, height, width = told["shape"]
image = Image.open(sys.argv[2]).convert("RGB" if channels == 3 else "L").resize((width, height))
pixels = np.asarray(image, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / 255
black, white = (np.array(told[end], np.float32).reshape(-1, 1, 1) for end in ("black", "white"))
(logits,) = network.run(None, {"images": (black + pixels * (white - black))[None]})[:1]
best = np.argsort(-logits[0])[:5]
print(*(f"class {place}: {logits[0][place]:.2f}" for place in best), sep="\n")
