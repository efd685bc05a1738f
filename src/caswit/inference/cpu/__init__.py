"""The network once more, for inference alone: the same function, arranged for speed (docs/performance.md).

What an arrangement may do: fold norms, gates and scales into the weights around them, look up indices and masks
instead of computing them, and change the order of exact operations. It is written once, over the few operations of
``ops``, and runs in torch or is compiled by OpenVINO.
"""
