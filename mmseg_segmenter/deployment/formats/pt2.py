"""Write the ``.pt2`` files of ``torch.export``."""

import torch


def save(program: torch.export.ExportedProgram, path: str, metadata: dict[str, str]) -> None:
    """Write a graph, which ``torch.export.load`` reads.

    Args:
        program: what :func:`~mmseg_segmenter.deployment.trace` returned.
        path: ``.pt2`` file.
        metadata: stored beside the graph, by name.
    """
    torch.export.save(program, path, extra_files=metadata)
