"""Scenes, samples and synthetic landscapes."""
