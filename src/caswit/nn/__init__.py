"""Networks and their parts: CASWiT, its pretraining, and baselines."""
