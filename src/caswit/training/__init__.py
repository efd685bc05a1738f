"""Training: one loop, supervised or self-supervised."""
