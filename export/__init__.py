"""From published or trained weights to ONNX graphs: export, fill, precision, parity."""
