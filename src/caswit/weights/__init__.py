"""Weights that others trained: reading their files, translating their names, starting from them."""
