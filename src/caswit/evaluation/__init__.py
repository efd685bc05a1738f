"""Scores of a model on labelled scenes, their report, and a look at a dataset before training."""
