"""Check a dataset before training on it."""

from .check import Problem, Report, check_dataset

__all__ = ['Problem', 'Report', 'check_dataset']
