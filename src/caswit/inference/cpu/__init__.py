"""The network arranged for inference on a processor: the same function, computed faster (docs/performance.md).

An arrangement may fold norms, gates and scales into the weights around them, look up indices and masks instead of
computing them, and change the order of exact operations, so that nothing but rounding differs from ``caswit.nn``. It is
written once over the operations of ``ops``, and runs in torch or is compiled by OpenVINO:

- ``encoder``: Swin blocks, whose windows are gathered by tables, and fusion
- ``decoder``: UPerNet and the SegFormer head, with norms folded and without enlarged maps
- ``winograd``: 3x3 convolutions with fewer multiplications
- ``network``: all of it behind the call of ``CASWiT``
"""
