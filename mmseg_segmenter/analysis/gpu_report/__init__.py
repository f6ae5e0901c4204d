"""Test and measure the package on a GPU with one command, and write a page about it."""
