"""Measure models side by side: same weights, same data, one process, taking turns."""

from .cases import DTYPES, MODES, VARIANTS, Case, Contender, contenders, load_config
from .measure import compare, machine, matmul_peak, timed
from .pipeline import loader
from .report import number, plot, record, table, write_json
from .workload import Workload, device, float32_products, prepare

__all__ = [
    'DTYPES',
    'MODES',
    'VARIANTS',
    'Case',
    'Contender',
    'Workload',
    'compare',
    'contenders',
    'device',
    'float32_products',
    'load_config',
    'loader',
    'machine',
    'matmul_peak',
    'number',
    'plot',
    'prepare',
    'record',
    'table',
    'timed',
    'write_json',
]
