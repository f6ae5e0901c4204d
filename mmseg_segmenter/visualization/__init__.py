"""Draw contact sheets, training curves and confusion matrices."""
