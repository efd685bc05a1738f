"""What the network looked at: attention of a pixel, and its figure."""
