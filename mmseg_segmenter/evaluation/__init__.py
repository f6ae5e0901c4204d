from .mae import MAEMetric

__all__ = ['MAEMetric']
