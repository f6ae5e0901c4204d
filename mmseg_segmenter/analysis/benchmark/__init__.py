"""Measure models side by side: same weights, same data, one process, taking turns."""

from .cases import DTYPES, MODES, VARIANTS, Case, Contender, contenders, load_config
from .measure import compare, machine, matmul_peak, timed
from .pipeline import LoaderTimes, loader
from .report import loader_table, number, plot, record, table, write_json
from .workload import Workload, device, float32_products, prepare

__all__ = [
    'DTYPES',
    'MODES',
    'VARIANTS',
    'Case',
    'Contender',
    'LoaderTimes',
    'Workload',
    'compare',
    'contenders',
    'device',
    'float32_products',
    'load_config',
    'loader',
    'loader_table',
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
