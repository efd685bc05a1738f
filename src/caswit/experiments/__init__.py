"""Experiments that need several trainings or models: the demonstration, tables and figures of the paper."""
