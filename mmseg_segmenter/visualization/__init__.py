"""Pictures: contact sheets of images and label maps, curves, matrices."""
