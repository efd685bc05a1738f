"""Weights of networks: folders that hold them, those that come with the package, and those of other libraries."""
