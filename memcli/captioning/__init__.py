"""Captions made on this machine: SmolVLM2 in ONNX Runtime, without torch or transformers."""
