"""A trained network at work: the predictor, its devices, its form arranged for processors, its ONNX form."""
