"""Models as ONNX files, for programs that run neither Python nor PyTorch: forms, metadata, writing and checking."""
