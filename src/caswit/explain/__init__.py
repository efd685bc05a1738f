"""Explain the class of a pixel: its cross-attention, and its class with masked and with swapped context."""
