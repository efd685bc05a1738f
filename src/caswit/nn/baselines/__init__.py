"""Other networks behind the interface of CASWiT, for the paper's tables."""
