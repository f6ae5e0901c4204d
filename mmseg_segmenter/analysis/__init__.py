"""Measure models and look at results."""
