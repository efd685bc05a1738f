"""Building blocks of the network, each one box of the paper's figure 1."""
