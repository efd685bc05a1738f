"""The network arranged for inference on a processor: the same function, computed faster (docs/performance.md).

An arrangement may fold norms, gates and scales into the weights around them, look up indices and masks instead of
computing them, and change the order of exact operations, so that nothing but rounding differs from ``caswit.nn``. It is
written once over the operations of ``ops``, and runs in torch or is compiled by OpenVINO.
"""
