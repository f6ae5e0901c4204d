"""Measure models side by side: same weights, same data, one process, taking turns."""

from .cases import DTYPES, MODES, Case, Contender, contenders, load_config
from .measure import compare, machine, matmul_peak, timed
from .pipeline import loader
from .report import plot, record, table, write_json
from .workload import Workload, float32_products, prepare

__all__ = [
    'DTYPES',
    'MODES',
    'Case',
    'Contender',
    'Workload',
    'compare',
    'contenders',
    'float32_products',
    'load_config',
    'loader',
    'machine',
    'matmul_peak',
    'plot',
    'prepare',
    'record',
    'table',
    'timed',
    'write_json',
]
