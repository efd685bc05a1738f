"""A trained network at work: the predictor, its devices, its fast form on processors, its ONNX form."""
