"""Blocks of a map on a Ray cluster."""
