"""One module per command: ``parser()`` says what it takes, ``run(arguments)`` does it.

Modules import what computes inside ``run`` only, so that ``--help`` is instant.
"""
