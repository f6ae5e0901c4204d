"""Foreign checkpoint formats, one file each, to mmseg's layout and back."""
